/* The C interface of libvqp_cpu.so. No torch, no Python: plain pointers to contiguous memory.
 *
 * The packed layouts are drawn in vllm_quant_kernels/cpu/layout.py and pack.py. Functions that return
 * int return 0 or one of VQP_E*. Nothing but scratch memory is kept between calls.
 */
#ifndef VQP_CPU_H
#define VQP_CPU_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define VQP_API __attribute__((visibility("default")))

enum { VQP_ABI_VERSION = 4, VQP_LAYOUT_VERSION = 1 };
enum { VQP_OK = 0, VQP_ELAYOUT = 1, VQP_EDTYPE = 2, VQP_EMEMORY = 3, VQP_EPERM = 4, VQP_ECPU = 5, VQP_ESYSTEM = 6 };
enum { VQP_F32 = 0, VQP_BF16 = 1, VQP_F16 = 2, VQP_U8 = 3 };
enum { VQP_SCALAR = 0, VQP_AVX2, VQP_AVX512, VQP_AVX512_VNNI, VQP_AVX512_BF16, VQP_AMX, VQP_LEVELS };

VQP_API int vqp_cpu_abi_version(void);
/* The best level of this CPU, and the one in use: initially the best one below VQP_AMX, which must be requested. */
VQP_API int vqp_cpu_max_level(void);
VQP_API int vqp_cpu_level(void);
/* Use no instruction beyond `level`; VQP_ECPU where the CPU does not reach it, VQP_ESYSTEM where the operating system
 * refuses its registers. */
VQP_API int vqp_cpu_set_level(int level);

/* y (m, n) = x (m, k) . W^T + bias, W weight-only quantized. x and y have dtype `x_dtype`
 * (F32, BF16, F16); bias is F32 (n) or null; zeros null, U8 or F32; perm null or int32[perm_len].
 * kind is the layout version in its high byte and 0 int, 1 FP8 E4M3, 2 FP8 E5M2 in its low byte.
 */
VQP_API int vqp_wna16_linear(const void *x, int x_dtype, void *y, int64_t m, const uint8_t *data, int64_t data_bytes,
                             const void *scales, int scale_dtype, const void *zeros, int zero_dtype,
                             const int32_t *perm, int64_t perm_len, const float *bias, int kind, int bits,
                             int64_t group_size, int64_t groups, int64_t n, int64_t k, int threads);

/* The same with x quantized to INT8: one symmetric scale for each row and run of at most 128 input
 * features of one group. kind 0, bits 2 to 7.
 */
VQP_API int vqp_w4a8_linear(const void *x, int x_dtype, void *y, int64_t m, const uint8_t *data, int64_t data_bytes,
                            const void *scales, int scale_dtype, const void *zeros, int zero_dtype,
                            const int32_t *perm, int64_t perm_len, const float *bias, int kind, int bits,
                            int64_t group_size, int64_t groups, int64_t n, int64_t k, int threads);

/* y (m, n) = dequantized (q(x) . W^T) + bias, W int8 with one scale per channel. in_scale null:
 * one scale per row of x, symmetric or not; else static, with in_zero (null = 0).
 */
VQP_API int vqp_w8a8_linear(const void *x, int x_dtype, void *y, int64_t m, const int8_t *data, int64_t data_bytes,
                            const float *w_scale, const int32_t *w_sum, const float *bias, const float *in_scale,
                            const int32_t *in_zero, int symmetric, int64_t n, int64_t k, int threads);

/* Codes (n, k), one byte each, to the packed planes: n rounded up to 16 times kp * bits / 8 bytes.
 * columns (kp) names the source column of each packed one, -1 = zero; null is 0, 1, ... k - 1.
 */
VQP_API int vqp_pack(const uint8_t *codes, int64_t n, int64_t k, int bits, const int32_t *columns, int64_t kp,
                     uint8_t *out, int threads);

/* The layouts of codes in 32-bit words, drawn in kernels/cpu/unpack_words.cpp. */
enum { VQP_WORDS_N = 0, VQP_WORDS_K = 1, VQP_WORDS_K_ROWS = 2, VQP_WORDS_K_PADDED = 3 };

/* Codes [row, row + n) x [column, column + k) of a matrix in `words` (rows, columns): to planes as vqp_pack makes them,
 * and to one byte each, (n, k). VQP_WORDS_N takes `row` a multiple of 16 and n a whole number of words.
 */
VQP_API int vqp_pack_words(const int32_t *words, int64_t rows, int64_t columns, int layout, int bits, int64_t row,
                           int64_t n, int64_t column, int64_t k, const int32_t *order, int64_t kp, uint8_t *out,
                           int threads);
VQP_API int vqp_unpack_words(const int32_t *words, int64_t rows, int64_t columns, int layout, int bits, int64_t row,
                             int64_t n, int64_t column, int64_t k, uint8_t *codes, int threads);

/* Reads memory with 256-bit loads (a CPU with AVX2) and returns a sum of it: for measuring bandwidth. */
VQP_API uint64_t vqp_read(const void *memory, int64_t bytes, int threads);

#ifdef __cplusplus
}
#endif
#endif
