/* The instructions of kernels/cuda/wgmma_ss.h on the CPU. */
#ifndef VQP_EMULATOR_WGMMA8_H
#define VQP_EMULATOR_WGMMA8_H

#include "emulator_wgmma.h"

namespace vqp {
namespace emulator {

struct WgmmaSsOperands {
  float *c; /* [tiles][4], FP32 or INT32 */
  int tiles;
  uint64_t a, b;
  bool accumulate, integer;
};

}  // namespace emulator

template <int kTiles>
void wgmma_ss(float (&c)[kTiles][4], uint64_t a, uint64_t b, bool accumulate) {
  emulator::WgmmaSsOperands operands = {c[0], kTiles, a, b, accumulate, false};
  emulator::warp_instruction(emulator::Warp::kWgmmaSs, &operands);
}
template <int kTiles>
void wgmma_ss(int32_t (&c)[kTiles][4], uint64_t a, uint64_t b, bool accumulate) {
  emulator::WgmmaSsOperands operands = {reinterpret_cast<float *>(c[0]), kTiles, a, b, accumulate, true};
  emulator::warp_instruction(emulator::Warp::kWgmmaSs, &operands);
}
template <int kPending>
void wgmma_wait() {
  emulator::wgmma_wait(kPending);
}

}  // namespace vqp

#endif
