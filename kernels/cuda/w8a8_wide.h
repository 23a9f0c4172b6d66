/* The W8A8 GEMM for large batches, as w8a8.cu calls it. */
#ifndef VQP_CUDA_W8A8_WIDE_H
#define VQP_CUDA_W8A8_WIDE_H

#include "vqp_cuda_w8a8.h"

namespace vqp {

/* Whether the current device runs code for sm_90a. Returns an error code of the C interface. */
__attribute__((visibility("hidden"))) int w8a8_wide_available(bool *available);
/* Launch a call whose plan has `channels`. */
__attribute__((visibility("hidden"))) int run_w8a8_wide(const vqp_cuda_w8a8 &call, const vqp_cuda_w8a8_plan &plan,
                                                    void *stream);

}  // namespace vqp

#endif
