/* How activations become 8-bit codes: the scale of a row or group, and the rounding of a value.
 *
 * Bit for bit what vLLM's kernels compute (csrc/quantization/w8a8, and fp8/common.cuh), in FP32:
 *
 *   INT8  dynamic, symmetric    scale = absmax / 127               q = int8(x * (127 / absmax)); all 0 for absmax 0
 *         dynamic, asymmetric   scale = (high - low) / 255         q = int8(int32(x * (1 / scale)) + zero)
 *                               zero = int32(-128 - low / scale)
 *         static                                                   q = int8(x / scale)
 *         static, with a zero                                      q = int8(int32(x * (1 / scale)) + zero)
 *   FP8   dynamic, per token    scale = max(absmax / 448, 1 / (448 * 512))     q = e4m3(x / scale)
 *         static                                                               q = e4m3(x * (1 / scale))
 *         groups of 128         scale = max(absmax, 1e-10) / 448               q = e4m3(x / scale)
 *
 * Integers round to nearest even and saturate; NaN becomes 0. E4M3 is clamped to 448 first, by a minimum and a maximum
 * that ignore NaN. NaN is also ignored in absmax, high and low. There is one deviation: the asymmetric range contains
 * 0, as in compressed-tensors; otherwise a constant row would get scale 0.
 */
#ifndef VQP_CUDA_QUANTIZE_MATH_H
#define VQP_CUDA_QUANTIZE_MATH_H

#include "numeric8.h"
#include "vqp_cuda_w8a8.h"

namespace vqp {

constexpr int kInt8 = 8; /* code kinds, beside kFp8 of layout.h */
constexpr int kQuantizeGroup = 128;

/* The range [low, high] of the values seen; it contains 0. low stays 0 where only magnitudes matter. */
struct ValueRange {
  float low = 0, high = 0;
};
VQP_HD void extend_range(ValueRange &e, float value, bool asymmetric) {
  if (asymmetric) {
    e.low = fminf(e.low, value);
    e.high = fmaxf(e.high, value);
  } else {
    e.high = fmaxf(e.high, fabsf(value));
  }
}

/* code(x) = round(divide ? x / by : x * by) + zero; the value of a code is (code - zero) * scale. */
struct Quantizer {
  float scale, by;
  int32_t zero;
  bool divide;
};

VQP_HD Quantizer dynamic_int8(const ValueRange &e, bool asymmetric) {
  if (!asymmetric) return {e.high / 127.0f, e.high == 0 ? 0.0f : 127.0f / e.high, 0, false};
  const float scale = (e.high - e.low) / 255.0f;
  if (scale == 0) return {0, 0, 0, false};
  return {scale, 1.0f / scale, clamp_int8(round_int32(-128.0f - e.low / scale)), false};
}
VQP_HD Quantizer static_int8(float scale, bool with_zero, int32_t zero) {
  return {scale, with_zero ? 1.0f / scale : scale, zero, !with_zero};
}
VQP_HD Quantizer dynamic_fp8(const ValueRange &e) {
  const float scale = fmaxf(e.high / kE4m3Max, 1.0f / (kE4m3Max * 512.0f));
  return {scale, scale, 0, true};
}
VQP_HD Quantizer static_fp8(float scale) { return {scale, 1.0f / scale, 0, false}; }
VQP_HD Quantizer group_fp8(const ValueRange &e) {
  const float scale = fmaxf(e.high, 1e-10f) / kE4m3Max;
  return {scale, scale, 0, true};
}

VQP_HD float scaled(const Quantizer &q, float value) { return q.divide ? value / q.by : value * q.by; }

VQP_HD uint32_t int8_code(const Quantizer &q, float value) {
  /* Clamp well beyond the codes first, so that adding the zero point cannot overflow. */
  const int32_t whole = round_int32(scaled(q, value));
  const int32_t bounded = whole < -4096 ? -4096 : whole > 4096 ? 4096 : whole;
  return static_cast<uint32_t>(clamp_int8(bounded + q.zero)) & 0xFF;
}

/* NaN becomes -448 with group scales and 448 otherwise, by the order of the two comparisons in vLLM. */
template <bool kGroup>
VQP_HD float clamp_e4m3(float value) {
  return kGroup ? fminf(fmaxf(value, -kE4m3Max), kE4m3Max) : fmaxf(-kE4m3Max, fminf(value, kE4m3Max));
}

/* Four values to four codes, the first in the low byte. */
template <int kKind, bool kGroup>
VQP_HD uint32_t four_codes(const Quantizer &q, const float *values) {
  if constexpr (kKind == kInt8) {
    uint32_t word = 0;
    VQP_UNROLL
    for (int i = 0; i < 4; ++i) word |= int8_code(q, values[i]) << 8 * i;
    return word;
  } else {
    float c[4];
    VQP_UNROLL
    for (int i = 0; i < 4; ++i) c[i] = clamp_e4m3<kGroup>(scaled(q, values[i]));
    return to_e4m3_pair(c[0], c[1]) | to_e4m3_pair(c[2], c[3]) << 16;
  }
}

}  // namespace vqp

#endif
