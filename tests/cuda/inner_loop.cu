/* The decode kernels with the usual case fixed at compile time (groups of 128, FP16 scales, no zero points, no
 * act-order), so that the loop in their disassembly is what runs: tests/cuda/test_compile.py counts it. */
#include "wna16_kernel.h"

namespace vqp {

template <class T, int kKind>
VQP_KERNEL(kThreads, 2)
inner_loop(const VQP_PARAMETER Wna16Params given) {
  Wna16Params p = given;
  p.group_shift = 3, p.flush_mask = 0x8;
  p.call.scale_dtype = VQP_CUDA_F16, p.scale_bytes = 2, p.zero_bytes = 0;
  p.x_element_wise = 0, p.call.rows = nullptr, p.call.perm = nullptr;
  wna16_cta<T, kKind, 8, false>(p);
}

#define VQP_BOTH(kind)                                                              \
  template __global__ void inner_loop<Half, kind>(const VQP_PARAMETER Wna16Params given); \
  template __global__ void inner_loop<BFloat16, kind>(const VQP_PARAMETER Wna16Params given);
VQP_BOTH(2)
VQP_BOTH(3)
VQP_BOTH(4)
VQP_BOTH(5)
VQP_BOTH(6)
VQP_BOTH(7)
VQP_BOTH(8)
VQP_BOTH(9)

}  // namespace vqp
