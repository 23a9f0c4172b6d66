/* What emulator.cpp keeps of asynchronous products. */
#ifndef VQP_EMULATOR_WGMMA_STATE_H
#define VQP_EMULATOR_WGMMA_STATE_H

#include <stdint.h>

#include <deque>
#include <map>
#include <memory>
#include <utility>
#include <vector>

namespace vqp {
namespace emulator {

/* One warp's product, with what it reads as it was when issued. */
struct ProductInput {
  std::vector<std::pair<const char *, uint32_t>> words; /* of B */
};
struct Product {
  float *c;
  const uint32_t *a;
  uint32_t a_then[4];
  std::vector<float> result;
  std::shared_ptr<ProductInput> input;
};
struct Products { /* of a lane */
  std::deque<std::vector<Product>> groups;
  std::vector<Product> open;
  std::map<const float *, uint64_t> completed; /* when each set of sums was last waited for */
  uint64_t fenced = 0, issued = 0, proxy_fenced = 0;
  uint32_t last_a[4] = {};
  size_t count = 0;

  Product *pending(const float *c) {
    for (auto product = open.rbegin(); product != open.rend(); ++product)
      if (product->c == c) return &*product;
    for (auto group = groups.rbegin(); group != groups.rend(); ++group)
      for (auto product = group->rbegin(); product != group->rend(); ++product)
        if (product->c == c) return &*product;
    return nullptr;
  }
};
constexpr uint32_t kPoison = 0x7F80DEADu; /* a signaling NaN: no sum is one, and arithmetic turns it into another */

}  // namespace emulator
}  // namespace vqp

#endif
