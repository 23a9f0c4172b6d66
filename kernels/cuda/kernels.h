/* The table of kernels: which instance runs a weight kind, activation dtype and token tile. */
#ifndef VQP_CUDA_KERNELS_H
#define VQP_CUDA_KERNELS_H

namespace vqp {

/* The kernel of `kind` for `tokens` tokens a block; `half`: FP16 activations, else BF16. Defined per kind. */
template <int kKind>
__attribute__((visibility("hidden"))) const void *wna16_kernel(bool half, int tokens, bool float_zeros);

}  // namespace vqp

#endif
