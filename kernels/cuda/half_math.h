/* Pairs of 16-bit floats in one register: the few operations that the kernels need, each with a software equivalent
 * for the CPU. Conversions and arithmetic round to nearest even and keep subnormals, as the hardware does.
 */
#ifndef VQP_CUDA_HALF_MATH_H
#define VQP_CUDA_HALF_MATH_H

#include <math.h>
#include <string.h>

#include "host_device.h"

namespace vqp {

struct Half {
  static constexpr int kMantissa = 10, kBias = 15;
  static constexpr uint32_t kOne = 0x3C003C00u, kMinusOne = 0xBC00BC00u;
  static constexpr uint32_t kMagic = 0x64006400u; /* 1024: or-ing an integer below 2^10 into the mantissa adds it */
};
struct BFloat16 {
  static constexpr int kMantissa = 7, kBias = 127;
  static constexpr uint32_t kOne = 0x3F803F80u, kMinusOne = 0xBF80BF80u;
  static constexpr uint32_t kMagic = 0x43004300u; /* 128 */
};

VQP_HD constexpr uint32_t both(uint32_t half) { return half * 0x00010001u; }

VQP_HD float as_float(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  float value;
  memcpy(&value, &bits, 4);
  return value;
#endif
}
VQP_HD uint32_t as_bits(float value) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(value);
#else
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
#endif
}

/* The value of a 16-bit float with the format's mantissa and bias. */
template <class T>
double emulated_value(uint32_t bits) {
  constexpr int kTop = (1 << (15 - T::kMantissa)) - 1;
  const int exponent = (bits >> T::kMantissa) & kTop, mantissa = bits & ((1 << T::kMantissa) - 1);
  double value;
  if (exponent == kTop) {
    value = mantissa ? NAN : INFINITY;
  } else if (exponent == 0) {
    value = mantissa * ldexp(1.0, 1 - T::kBias - T::kMantissa);
  } else {
    const uint64_t wide = static_cast<uint64_t>(exponent - T::kBias + 1023) << 52 |
                          static_cast<uint64_t>(mantissa) << (52 - T::kMantissa);
    memcpy(&value, &wide, 8);
  }
  return bits & 0x8000 ? -value : value;
}

/* Round a double to the format, to nearest even. */
template <class T>
uint32_t emulated_round(double value) {
  uint64_t wide;
  memcpy(&wide, &value, 8);
  const uint32_t sign = wide >> 48 & 0x8000, infinity = 0x7FFF & ~((1u << T::kMantissa) - 1);
  if (value != value) return sign | 0x7FFF;
  int exponent = static_cast<int>(wide >> 52 & 0x7FF) - 1023;
  if (exponent > T::kBias) return sign | infinity;
  const uint64_t mantissa = exponent == -1023 ? 0 : (wide & ((1ull << 52) - 1)) | 1ull << 52;
  int shift = 52 - T::kMantissa;
  if (exponent < 1 - T::kBias) shift += 1 - T::kBias - exponent, exponent = 1 - T::kBias;
  if (shift > 54) return sign;
  uint64_t steps = mantissa >> shift;
  const uint64_t remainder = mantissa & ((1ull << shift) - 1), tie = 1ull << (shift - 1);
  steps += remainder > tie || (remainder == tie && (steps & 1));
  return sign | static_cast<uint32_t>(steps + (static_cast<uint64_t>(exponent + T::kBias - 1) << T::kMantissa));
}

template <class T>
VQP_HD float to_float(uint32_t bits);
template <>
VQP_HD float to_float<Half>(uint32_t bits) {
#ifdef __CUDA_ARCH__
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(static_cast<uint16_t>(bits)));
  return value;
#else
  return static_cast<float>(emulated_value<Half>(bits));
#endif
}
template <>
VQP_HD float to_float<BFloat16>(uint32_t bits) {
  return as_float(bits << 16);
}

/* Two floats to a pair, `low` in the low half. */
template <class T>
VQP_HD uint32_t to_pair(float low, float high);
template <>
VQP_HD uint32_t to_pair<Half>(float low, float high) {
#ifdef __CUDA_ARCH__
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return emulated_round<Half>(low) | emulated_round<Half>(high) << 16;
#endif
}
template <>
VQP_HD uint32_t to_pair<BFloat16>(float low, float high) {
#ifdef __CUDA_ARCH__
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return emulated_round<BFloat16>(low) | emulated_round<BFloat16>(high) << 16;
#endif
}

template <class T>
uint32_t emulated_fma_pair(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t out = 0;
  for (int shift = 0; shift <= 16; shift += 16) {
    const double x = emulated_value<T>(a >> shift & 0xFFFF), y = emulated_value<T>(b >> shift & 0xFFFF);
    out |= emulated_round<T>(x * y + emulated_value<T>(c >> shift & 0xFFFF)) << shift;
  }
  return out;
}

/* a * b + c on pairs, one rounding. */
template <class T>
VQP_HD uint32_t fma_pair(uint32_t a, uint32_t b, uint32_t c);
template <>
VQP_HD uint32_t fma_pair<Half>(uint32_t a, uint32_t b, uint32_t c) {
#ifdef __CUDA_ARCH__
  uint32_t out;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
  return out;
#else
  return emulated_fma_pair<Half>(a, b, c);
#endif
}
template <>
VQP_HD uint32_t fma_pair<BFloat16>(uint32_t a, uint32_t b, uint32_t c) {
#ifdef __CUDA_ARCH__
  uint32_t out;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
  return out;
#else
  return emulated_fma_pair<BFloat16>(a, b, c);
#endif
}

/* a + b on pairs. BF16 has no add before sm_90, and fma by one costs the same. */
template <class T>
VQP_HD uint32_t add_pair(uint32_t a, uint32_t b) {
  return fma_pair<T>(a, T::kOne, b);
}

/* (a & b) | c as one lop3. The compiler alone emits two instructions where b and c are both constants. */
VQP_HD uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) {
#ifdef __CUDA_ARCH__
  uint32_t out;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
  return out;
#else
  return (a & b) | c;
#endif
}

/* Four bytes chosen from a (0..3) and b (4..7) by the nibbles of `select`. */
VQP_HD uint32_t byte_permute(uint32_t a, uint32_t b, uint32_t select) {
#ifdef __CUDA_ARCH__
  return __byte_perm(a, b, select);
#else
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) out |= static_cast<uint32_t>(bytes >> 8 * (select >> 4 * i & 7) & 0xFF) << 8 * i;
  return out;
#endif
}

}  // namespace vqp

#endif
