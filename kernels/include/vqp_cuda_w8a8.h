/* The C interface of the W8A8 kernels in libvqp_cuda.so. Conventions and error codes are those of vqp_cuda.h. */
#ifndef VQP_CUDA_W8A8_H
#define VQP_CUDA_W8A8_H

#include "vqp_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* 8-bit codes of activations: (code - zero) * scale is x[row][column] but for rounding, which
 * kernels/cuda/quantize_math.h defines. Static with in_scale, else the scales (and, where `zeros` is not null, the
 * zero points) of each row are computed, or with group_size 128 the scales of each 128 columns of a row. */
typedef struct {
  const void *x;          /* (m, k), rows x_stride elements apart, BF16 or FP16 */
  const float *in_scale;  /* null, or one element on the device */
  const int32_t *in_zero; /* null, or one element; INT8 only */
  uint8_t *q;             /* (m, q_stride), 16-byte aligned; columns from k on become 0 */
  float *scales;          /* (m), or [ceil(k / 128)][scale_stride]; null with in_scale */
  int32_t *zeros;         /* null: symmetric; (m), INT8 only */
  int64_t m, k, x_stride;
  int64_t q_stride;       /* k rounded up to 16 */
  int64_t scale_stride;   /* at least m; with group_size only */
  int32_t x_dtype;
  int32_t kind;           /* 8: INT8; 9: FP8 E4M3 */
  int32_t group_size;     /* 0, or 128: FP8 only */
} vqp_cuda_quantize;

/* Quantize activations. `stream` is a cudaStream_t. */
VQP_CUDA_API int vqp_cuda_quantize_run(const vqp_cuda_quantize *call, void *stream);

/* y (m, n) = (x codes - x zeros) . W codes^T * x scales * W scales + bias, accumulated in INT32 or FP32.
 *
 * Per-channel and per-token scales multiply the accumulators at the end. Block scales (`grouped`, FP8): x has one scale
 * per row and 128 columns, W one per 128 x 128 block; they multiply the accumulators of each 128 columns. With
 * quantize_x, x is BF16 or FP16 and is quantized in the same launch: by x_scales and x_zeros, or by the range of each
 * row.
 */
typedef struct {
  const void *x;           /* codes (m, kp), rows x_stride apart, 16-byte aligned; with quantize_x (m, k) of y_dtype */
  void *y;                 /* (m, n) contiguous, BF16 or FP16 */
  const uint8_t *w;        /* codes (n, kp) row-major, 16-byte aligned; columns from k on are 0 */
  const float *w_scales;   /* (n); grouped: [ceil(n / 128)][ceil(k / 128)] */
  const int32_t *w_sums;   /* null, or (n): the sum of each row's codes, for zero points of x */
  const float *x_scales;   /* (m), or one element (x_scale_stride 0); grouped: [ceil(k / 128)][x_scale_stride] */
  const int32_t *x_zeros;  /* null, or like x_scales; INT8 only */
  const void *bias;        /* null, or (n) of bias_dtype */
  int64_t x_stride;        /* elements */
  int64_t m, n, k;
  int64_t kp;              /* k rounded up to 16 */
  int64_t x_scale_stride;  /* 0 or 1; grouped: at least m, a multiple of 4 */
  int32_t kind;            /* 8: INT8; 9: FP8 E4M3, from compute capability 8.9 */
  int32_t y_dtype, bias_dtype;
  int32_t grouped;
  int32_t promote;         /* FP8: accumulate in FP32 after each 128 columns */
  int32_t quantize_x;      /* x_scales and x_zeros are then static, or null */
  int32_t symmetric;       /* with quantize_x and without x_scales */
  int32_t batch_invariant; /* a row's bits do not depend on m */
  int32_t warpgroups;      /* the kernels of sm_90a for large m */
  int32_t dependent;       /* may start before the preceding kernel in the stream has ended, which must then not
                              write w, w_scales, w_sums, bias, or static x_scales and x_zeros */
} vqp_cuda_w8a8;

/* The launch plan of a call; see kernels/cuda/w8a8_schedule.h. With warpgroups see kernels/cuda/w8a8_wide_schedule.h:
 * `channels` is the width of a tile and `ctas` the size of the grid. Both are 0 otherwise. */
typedef struct {
  int32_t tokens, m_tiles, n_tiles, splits, stages, shared_bytes, clustered, dependent, channels, ctas;
  int64_t workspace_bytes;
} vqp_cuda_w8a8_plan;

/* The plan of a call on the current device. VQP_CUDA_EDEVICE where the device has no kernel for it: FP8 before 8.9;
 * with quantize_x, rows too long for shared memory; with warpgroups, a GPU other than Hopper, quantize_x, or
 * batch-invariant FP8. */
VQP_CUDA_API int vqp_cuda_w8a8_make_plan(const vqp_cuda_w8a8 *call, vqp_cuda_w8a8_plan *plan);
VQP_CUDA_API int vqp_cuda_w8a8_run(const vqp_cuda_w8a8 *call, const vqp_cuda_w8a8_plan *plan, void *workspace,
                                   int64_t workspace_bytes, void *stream);
/* Apply scales, zero points and bias to the accumulators (m, n), INT32 or FP32, of a GEMM of another library. Reads
 * everything in the call but x and w. Not for block scales. */
VQP_CUDA_API int vqp_cuda_w8a8_finish(const vqp_cuda_w8a8 *call, const void *sums, void *stream);

#ifdef __cplusplus
}
#endif
#endif
