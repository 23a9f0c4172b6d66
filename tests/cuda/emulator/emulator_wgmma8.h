/* The products of kernels/cuda/wgmma8.h on the CPU. */
#ifndef VQP_EMULATOR_WGMMA8_H
#define VQP_EMULATOR_WGMMA8_H

#include "emulator_wgmma.h"

namespace vqp {
namespace emulator {

struct Wgmma8Operands {
  float *c; /* [tiles][4], FP32 or INT32 */
  int tiles;
  uint64_t a, b;
  bool accumulate, integer;
};

}  // namespace emulator

template <int kTiles>
void wgmma8(float (&c)[kTiles][4], uint64_t a, uint64_t b, bool accumulate) {
  emulator::Wgmma8Operands operands = {c[0], kTiles, a, b, accumulate, false};
  emulator::warp_instruction(emulator::Warp::kWgmma8, &operands);
}
template <int kTiles>
void wgmma8(int32_t (&c)[kTiles][4], uint64_t a, uint64_t b, bool accumulate) {
  emulator::Wgmma8Operands operands = {reinterpret_cast<float *>(c[0]), kTiles, a, b, accumulate, true};
  emulator::warp_instruction(emulator::Warp::kWgmma8, &operands);
}
template <class Sum, int kTiles>
void wgmma8_hold(Sum (&)[kTiles][4]) {}
template <int kPending>
void wgmma8_wait() {
  emulator::wgmma_wait(kPending);
}

}  // namespace vqp

#endif
