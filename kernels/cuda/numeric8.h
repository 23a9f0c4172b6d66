/* FP32 to and from 8-bit codes, as the PTX conversions round: nearest, ties to even, saturating.
 * Each has a software equivalent for the CPU; that of E4M3 also serves GPUs without the instruction (before sm_89).
 */
#ifndef VQP_CUDA_NUMERIC8_H
#define VQP_CUDA_NUMERIC8_H

#include "half_math.h"

namespace vqp {

constexpr float kE4m3Max = 448.0f;

/* To an integer. NaN becomes 0; values beyond the range of int32 saturate. */
VQP_HD int32_t round_int32(float value) {
#ifdef __CUDA_ARCH__
  return __float2int_rn(value);
#else
  if (value != value) return 0;
  if (value >= 2147483648.0f) return 2147483647;
  if (value < -2147483648.0f) return -2147483647 - 1;
  return static_cast<int32_t>(nearbyintf(value));
#endif
}

VQP_HD int32_t clamp_int8(int32_t value) { return value < -128 ? -128 : value > 127 ? 127 : value; }

/* |value| <= 448 (or NaN) to the bits of E4M3 with integer operations: equals cvt.rn.satfinite.e4m3x2.f32. */
VQP_HD uint32_t e4m3_by_integers(float value) {
  const uint32_t bits = as_bits(value), sign = bits >> 24 & 0x80, magnitude = bits & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return sign | 0x7F;
  if (magnitude >= 0x43E80000) return sign | 0x7E; /* from 464, halfway to the next value, which E4M3 lacks */
  if (magnitude < 0x3C800000) {
    /* Subnormals: below 2^-6, in steps of 2^-9. Adding 2^14 aligns 2^-9 with the last bit of the mantissa. */
    return sign | (as_bits(as_float(magnitude) + 16384.0f) - as_bits(16384.0f));
  }
  const uint32_t rounded = magnitude + 0x7FFFF + (magnitude >> 20 & 1);
  return sign | ((rounded >> 20) - (120u << 3));
}

/* Two floats of at most 448 to E4M3, `low` in the low byte. */
VQP_HD uint32_t to_e4m3_pair(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return e4m3_by_integers(low) | e4m3_by_integers(high) << 8;
#endif
}

/* The value of an E4M3 code. */
inline float e4m3_value(uint32_t code) {
  const int exponent = code >> 3 & 0xF, mantissa = code & 7;
  float value = exponent ? ldexpf(8.0f + mantissa, exponent - 10) : ldexpf(static_cast<float>(mantissa), -9);
  if (exponent == 15 && mantissa == 7) value = NAN;
  return code & 0x80 ? -value : value;
}

}  // namespace vqp

#endif
