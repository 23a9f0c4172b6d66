/* The instructions of kernels/cuda/wgmma.h and wgmma_rs.h on the CPU. They are asynchronous here as well: accumulators
 * get their values when waited for (or at once, see Options), and until then the emulator reports every change of what
 * a wgmma reads or writes.
 */
#ifndef VQP_EMULATOR_WGMMA_H
#define VQP_EMULATOR_WGMMA_H

#include "emulator.h"

namespace vqp {
namespace emulator {

struct WgmmaRsOperands {
  float *c; /* [tiles][4] */
  int tiles;
  const uint32_t *a;
  uint64_t b;
  bool accumulate, half;
};
void wgmma_wait(int pending);
uint32_t shared_offset(const void *pointer);

}  // namespace emulator

constexpr bool kWarpgroups = true;
void wgmma_fence();
void wgmma_commit();
void fence_proxy_async();

inline uint32_t shared_address(const void *pointer) { return emulator::shared_offset(pointer); }

template <class T, int kTiles>
void wgmma_rs(float (&c)[kTiles][4], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  emulator::WgmmaRsOperands operands = {c[0], kTiles, a, b, accumulate, T::kMantissa == Half::kMantissa};
  emulator::warp_instruction(emulator::Warp::kWgmmaRs, &operands);
}
template <class Accumulator, int kTiles>
void fence_accumulators(Accumulator (&)[kTiles][4]) {}
template <int kPending, int kTiles>
void wgmma_wait(float (&)[kTiles][4]) {
  emulator::wgmma_wait(kPending);
}
template <int kPending>
void wgmma_wait(uint32_t (&)[4]) {
  emulator::wgmma_wait(kPending);
}

}  // namespace vqp

#endif
