/* The table of weight-only GEMM kernels, by weight kind, activation dtype and tile size. */
#ifndef VQP_CUDA_WNA16_KERNELS_H
#define VQP_CUDA_WNA16_KERNELS_H

namespace vqp {

/* The kernel of kKind for a tile of `tokens` tokens. `half`: FP16 activations, else BF16. Defined in the .cu file of
 * the kind. */
template <int kKind>
__attribute__((visibility("hidden"))) const void *wna16_kernel(bool half, int tokens, bool float_zeros);

}  // namespace vqp

#endif
