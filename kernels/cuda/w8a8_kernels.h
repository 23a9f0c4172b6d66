/* The table of W8A8 GEMM kernels. */
#ifndef VQP_CUDA_W8A8_KERNELS_H
#define VQP_CUDA_W8A8_KERNELS_H

namespace vqp {

/* The kernel of kKind (8: INT8, 9: FP8) for a tile of `tokens` tokens. `grouped`: accumulate in FP32 after each K tile;
 * `fused`: quantize x in the kernel. Defined in the .cu file of the kind. */
template <int kKind>
__attribute__((visibility("hidden"))) const void *w8a8_kernel(int tokens, bool grouped, bool fused);

}  // namespace vqp

#endif
