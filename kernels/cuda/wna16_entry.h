/* The entry points of the weight-only GEMM on the device. */
#ifndef VQP_CUDA_WNA16_ENTRY_H
#define VQP_CUDA_WNA16_ENTRY_H

#include "wna16_wide_kernel.h"

namespace vqp {

template <class T, int kKind, int kTokens, bool kFloatZeros>
VQP_KERNEL(kThreads, max_ctas_per_sm(kTokens))
wna16(const VQP_PARAMETER Wna16Params p) {
  wna16_cta<T, kKind, kTokens, kFloatZeros>(p);
}

/* Empty where the target has no wgmma, which device_of in abi.cu detects by the launch bound of 32 threads. */
template <class T, int kKind, int kTokens, bool kScaleOnce>
VQP_KERNEL(kWarpgroups ? kThreads : 32, 1)
wna16_wide(const VQP_PARAMETER Wna16Params p) {
  if constexpr (kWarpgroups) wna16_wide_cta<T, kKind, kTokens, kScaleOnce>(p);
}

}  // namespace vqp

#endif
