/* The C interface of libvqp_cuda.so. No torch, no Python: device pointers, sizes and a stream.
 *
 * Functions return VQP_CUDA_OK, one of VQP_CUDA_E*, or VQP_CUDA_ERUNTIME + a cudaError_t. They enqueue
 * and return; nothing is allocated and no state is kept, so calls may be captured in a CUDA graph.
 * The packed layout is drawn in docs/internals/cuda.md.
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
  VQP_CUDA_ESHAPE = 1,     /* sizes that do not make a layout, or beyond the grid */
  VQP_CUDA_EDTYPE = 2,     /* a dtype or weight kind that no kernel reads */
  VQP_CUDA_EALIGN = 3,     /* a pointer without the alignment that its reads need */
  VQP_CUDA_EWORKSPACE = 4, /* the workspace is smaller than the plan's */
  VQP_CUDA_EDEVICE = 5,    /* the device has too little shared memory or is below sm_80 */
  VQP_CUDA_ERUNTIME = 1000
};
enum { VQP_CUDA_F32 = 0, VQP_CUDA_BF16 = 1, VQP_CUDA_F16 = 2, VQP_CUDA_U8 = 3, VQP_CUDA_NONE = 4 };

/* y (m, n) = x (m, k) . W^T + bias for a weight-only quantized W, or the grouped form over experts.
 *
 * Grouped form (rows not null): tile i of `tokens` rows reads expert experts[i]; row j of the tiles is pair
 * rows[j]: it reads row rows[j] / top_k of x and writes row rows[j] of y; a pair >= m is padding. `m` then
 * counts pairs, `padded_rows` (device, one element) the rows in use, and `sorted_rows` bounds it. A tile whose
 * expert is not in [0, num_experts) (it lives on another device, or the router chose none) writes zeros.
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
  int64_t groups;          /* ceil(k_padded / group_size), or 1: one scale a row */
  int64_t sorted_rows;
  int32_t group_size;      /* a power of two from 16; ignored for one group */
  int32_t kind;            /* 2..8: integer bits; 9: FP8 E4M3 */
  int32_t x_dtype, scale_dtype, zero_dtype, bias_dtype;
  int32_t top_k;
  int32_t num_experts;     /* with rows: how many the weight holds */
  int32_t batch_invariant; /* nonzero: a row's bits do not depend on m */
  int32_t dependent;       /* nonzero: may start before the kernel ahead of it in the stream has ended (sm_90). That
                              kernel must then not write data, scales, zeros, perm or bias */
} vqp_cuda_linear;

/* How a call runs; see kernels/cuda/schedule.h. */
typedef struct {
  int32_t tokens, m_tiles, n_tiles, splits, stages, stage_bytes, shared_bytes, clustered, dependent;
  int64_t workspace_bytes;
} vqp_cuda_plan;

VQP_CUDA_API int vqp_cuda_abi_version(void);
/* The plan of a call on the current device. `tokens` is an input in the grouped form, 0 to choose. */
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
