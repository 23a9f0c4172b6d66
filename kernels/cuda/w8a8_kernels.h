/* Which instance runs an 8-bit product. */
#ifndef VQP_CUDA_W8A8_KERNELS_H
#define VQP_CUDA_W8A8_KERNELS_H

namespace vqp {

/* The kernel of `kind` (8: INT8, 9: FP8) for `tokens` tokens a block. `grouped`: sums are taken over in FP32 at each
 * K tile; `fused`: x is quantized in the kernel. Defined per kind. */
template <int kKind>
__attribute__((visibility("hidden"))) const void *w8a8_kernel(int tokens, bool grouped, bool fused);

}  // namespace vqp

#endif
