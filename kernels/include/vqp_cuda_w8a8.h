/* The C interface of the 8-bit kernels in libvqp_cuda.so: conventions and error codes are those of vqp_cuda.h. */
#ifndef VQP_CUDA_W8A8_H
#define VQP_CUDA_W8A8_H

#include "vqp_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* 8-bit codes of activations: (code - zero) * scale is x[row][column] * smooth[column] but for rounding, which
 * kernels/cuda/quantize_math.h defines. Static with in_scale, else the scales (and, where `zeros` is not null,
 * the zero points) of each row are computed, or with group_size 128 the scales of each 128 columns of a row. */
typedef struct {
  const void *x;          /* (m, k), rows x_stride elements apart, BF16 or FP16 */
  const float *smooth;    /* null, or (k) */
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

#ifdef __cplusplus
}
#endif
#endif
