/* The C interface of libvqp_cuda.so. No torch, no Python: device pointers, sizes and a stream.
 *
 * Functions return VQP_CUDA_OK, one of VQP_CUDA_E*, or VQP_CUDA_ERUNTIME + a cudaError_t. They launch and return. They
 * allocate nothing and keep no state, so calls may be captured in a CUDA graph.
 * docs/internals/cuda.md draws the packed layout.
 */
#ifndef VQP_CUDA_H
#define VQP_CUDA_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define VQP_CUDA_API __attribute__((visibility("default")))

enum { VQP_CUDA_ABI_VERSION = 4, VQP_CUDA_LAYOUT_VERSION = 1 };
enum {
  VQP_CUDA_OK = 0,
  VQP_CUDA_ESHAPE = 1,     /* the sizes do not form a layout, or exceed the grid */
  VQP_CUDA_EDTYPE = 2,     /* no kernel takes this dtype or weight kind */
  VQP_CUDA_EALIGN = 3,     /* a pointer is not aligned as its loads require */
  VQP_CUDA_EWORKSPACE = 4, /* the workspace is smaller than the plan requires */
  VQP_CUDA_EDEVICE = 5,    /* the device has too little shared memory or is below sm_80 */
  VQP_CUDA_ERUNTIME = 1000
};
enum { VQP_CUDA_F32 = 0, VQP_CUDA_BF16 = 1, VQP_CUDA_F16 = 2, VQP_CUDA_U8 = 3, VQP_CUDA_NONE = 4 };

/* y (m, n) = x (m, k) . W^T + bias for a weight-only quantized W, or the grouped GEMM over experts.
 *
 * Grouped GEMM (rows not null): tile i of `tokens` rows uses expert experts[i]. Row j of the tiles is the (token,
 * expert) pair rows[j]: it reads row rows[j] / top_k of x and writes row rows[j] of y; a pair >= m is padding. `m` then
 * counts pairs, `padded_rows` (device, one element) counts the rows in use, and `sorted_rows` is its upper bound. A
 * tile whose expert is not in [0, num_experts) (it is on another device, or the router chose none) writes zeros.
 */
typedef struct {
  const void *x;           /* (rows, k), rows x_stride elements apart, dtype x_dtype */
  void *y;                 /* (m, n) contiguous, dtype x_dtype */
  const uint8_t *data;     /* packed codes, 16-byte aligned */
  const void *scales;      /* [row_tiles][groups][16], dtype scale_dtype, 16-byte aligned */
  const void *zeros;       /* same shape: U8 zero points, or F32 zero point minus 2^(bits-1); null: symmetric */
  const int32_t *perm;     /* null, or (k_padded): the column of x at each packed column, -1 for padding */
  const void *bias;        /* null, or (n) of bias_dtype */
  const int32_t *rows;     /* null, or (sorted_rows) */
  const int32_t *experts;  /* with rows: (sorted_rows / tokens) */
  const int32_t *padded_rows;
  const float *row_scales; /* null, or (m): factor of each row of y, after the bias (an expert's router weight) */
  int64_t m, n, k, k_padded;
  int64_t x_stride;
  int64_t groups;          /* ceil(k_padded / group_size), or 1: one scale per row */
  int64_t sorted_rows;
  int32_t group_size;      /* a power of two from 16; ignored for one group */
  int32_t kind;            /* 2..8: integer bits; 9: FP8 E4M3 */
  int32_t x_dtype, scale_dtype, zero_dtype, bias_dtype;
  int32_t top_k;
  int32_t num_experts;     /* with rows: experts in the weight */
  int32_t batch_invariant; /* nonzero: a row's bits do not depend on m */
  int32_t dependent;       /* nonzero: may start before the preceding kernel in the stream has ended (sm_90), which must
                              then not write data, scales, zeros, perm or bias */
} vqp_cuda_linear;

/* The launch plan of a call; see kernels/cuda/wna16_schedule.h. */
typedef struct {
  int32_t tokens, m_tiles, n_tiles, splits, stages, stage_bytes, shared_bytes, clustered, dependent;
  int64_t workspace_bytes;
} vqp_cuda_plan;

VQP_CUDA_API int vqp_cuda_abi_version(void);
/* The plan of a call on the current device. `tokens`: the tile size of the grouped GEMM; 0 to choose one. */
VQP_CUDA_API int vqp_cuda_linear_plan(const vqp_cuda_linear *call, int tokens, vqp_cuda_plan *plan);
/* Run a planned call. `stream` is a cudaStream_t. */
VQP_CUDA_API int vqp_cuda_linear_run(const vqp_cuda_linear *call, const vqp_cuda_plan *plan, void *workspace,
                                     int64_t workspace_bytes, void *stream);
/* Pack codes (n, k) uint8, row-major, into `data`: ceil(n/16) * k_padded/64 slabs. All pointers on the device. */
VQP_CUDA_API int vqp_cuda_pack(const uint8_t *codes, int64_t n, int64_t k, int64_t k_padded, const int32_t *perm,
                               int kind, uint8_t *data, void *stream);

#ifdef __cplusplus
}
#endif
#endif
