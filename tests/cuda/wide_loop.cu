/* The prefill kernels of sm_90a with the usual case fixed at compile time, as inner_loop.cu does for decode. */
#include "wna16_wide_kernel.h"

namespace vqp {

template <class T, int kTokens>
VQP_KERNEL(kWarpgroups ? kThreads : 32, 1)
wide_loop_of(const VQP_PARAMETER Wna16Params given) {
  Wna16Params p = given;
  p.group_shift = kTokens == kWideTokens ? 3 : kOneGroup;
  p.call.scale_dtype = VQP_CUDA_F16, p.scale_bytes = 2, p.zero_bytes = 0;
  p.x_element_wise = 0, p.call.rows = nullptr, p.call.perm = nullptr;
  if constexpr (kWarpgroups) wna16_wide_cta<T, 4, kTokens, (kTokens > kWideTokens)>(p);
}

template __global__ void wide_loop_of<Half, 128>(const VQP_PARAMETER Wna16Params given);
template __global__ void wide_loop_of<BFloat16, 128>(const VQP_PARAMETER Wna16Params given);
template __global__ void wide_loop_of<Half, 256>(const VQP_PARAMETER Wna16Params given);
template __global__ void wide_loop_of<BFloat16, 256>(const VQP_PARAMETER Wna16Params given);

}  // namespace vqp
