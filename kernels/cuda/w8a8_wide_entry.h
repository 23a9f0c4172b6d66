/* The entry point of the W8A8 GEMM for large batches on the device. */
#ifndef VQP_CUDA_W8A8_WIDE_ENTRY_H
#define VQP_CUDA_W8A8_WIDE_ENTRY_H

#include "w8a8_wide_kernel.h"

namespace vqp {
namespace {

template <int kKind, int kChannels, bool kPromote>
VQP_KERNEL(kWarpgroups ? kW8a8WideThreads : 32, 1)
w8a8_wide(const VQP_PARAMETER W8a8WideParams p) {
  if constexpr (kWarpgroups) w8a8_wide_cta<kKind, kChannels, kPromote>(p);
}

}  // namespace
}  // namespace vqp

#endif
