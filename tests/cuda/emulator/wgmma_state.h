/* The state of asynchronous wgmmas. */
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

/* What the wgmma of one warp reads, as it was when issued. */
struct WgmmaInput {
  std::vector<std::pair<const char *, uint32_t>> words; /* of B */
};
struct PendingWgmma {
  float *c;
  const uint32_t *a;
  uint32_t a_then[4];
  std::vector<float> result;
  std::shared_ptr<WgmmaInput> input;
};
struct WgmmaState { /* of a lane */
  std::deque<std::vector<PendingWgmma>> groups;
  std::vector<PendingWgmma> open;
  std::map<const float *, uint64_t> completed; /* when each set of accumulators was last waited for */
  uint64_t fenced = 0, issued = 0, proxy_fenced = 0;
  uint32_t last_a[4] = {};
  size_t count = 0;

  PendingWgmma *pending(const float *c) {
    for (auto pending_wgmma = open.rbegin(); pending_wgmma != open.rend(); ++pending_wgmma)
      if (pending_wgmma->c == c) return &*pending_wgmma;
    for (auto group = groups.rbegin(); group != groups.rend(); ++group)
      for (auto pending_wgmma = group->rbegin(); pending_wgmma != group->rend(); ++pending_wgmma)
        if (pending_wgmma->c == c) return &*pending_wgmma;
    return nullptr;
  }
};
constexpr uint32_t kPoison = 0x7F80DEADu; /* a signaling NaN: no accumulator is one, and arithmetic turns it into another */

}  // namespace emulator
}  // namespace vqp

#endif
