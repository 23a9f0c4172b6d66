/* From packed words to A fragments: the exact integer code - zero point (or the FP8 value) as 16-bit floats.
 *
 * A field is masked into the mantissa of a magic number (1024 in FP16, 128 in BF16), which makes it code + magic. One
 * fused multiply-add then subtracts magic + zero point. FP16 has enough mantissa bits to leave the fields of registers
 * 1 and 3 (output rows 8..15 of a tile) four bits higher: they are 16 * code, which the multiplier 1/16 of the same
 * instruction undoes. That saves two shifts per step. Rows 0..7 and 8..15 therefore have different addends
 * (`zero_addend_of`). Every intermediate value is an integer or an integer / 16 that the format represents exactly, for
 * zero points 0..255 (BF16 below 8 bits: 0..128).
 */
#ifndef VQP_CUDA_DEQUANT_H
#define VQP_CUDA_DEQUANT_H

#include "half_math.h"
#include "layout.h"

namespace vqp {

template <class T>
struct IsHalf {
  static constexpr bool value = false;
};
template <>
struct IsHalf<Half> {
  static constexpr bool value = true;
};

/* Whether the fields of rows 8..15 stay four bits higher: they then end at bit 4 + bits of the 10-bit mantissa. */
template <class T>
VQP_HD constexpr bool shifted_rows(int bits) {
  return IsHalf<T>::value && bits <= 6;
}

/* The addend of rows 0..7 (half 0) or 8..15 (half 1) of a tile for integer zero point `zero`. */
template <class T, int kKind>
VQP_HD uint32_t zero_addend_of(uint32_t zero, int half) {
  if (kKind == kFp8) return 0;
  if (IsHalf<T>::value) {
    const uint32_t minus = both(0xE400u + zero); /* -(1024 + zero): steps of one up to 2048 */
    if (!shifted_rows<T>(kKind) || half == 0) return minus;
    return add_pair<T>(minus, both(0x6380u)); /* + 960: -(64 + zero) */
  }
  if (kKind == 8) return both(zero == 0 ? 0u : as_bits(-static_cast<float>(zero)) >> 16);
  return both(0xC300u + zero); /* -(128 + zero) up to -256 */
}

/* Register `reg` of step `step` from the lane's kBits words of a slab (planes in order). */
template <class T, int kKind>
VQP_HD uint32_t dequantize(const uint32_t *words, int step, int reg, uint32_t zero_addend) {
  constexpr int kBits = bits_of(kKind);
  if (kKind == kFp8) {
    /* Move the sign to bit 15 and align exponent and mantissa; then multiply by 2^(difference of the biases). */
    const uint32_t up = byte_permute(words[field_word(8, step, reg)], 0, reg & 1 ? 0x3414 : 0x2404);
    const uint32_t value = and_or(up, 0x80008000u, (up & 0x7F007F00u) >> (IsHalf<T>::value ? 1 : 4));
    return fma_pair<T>(value, both(IsHalf<T>::value ? 0x5C00u : 0x7B80u), both(0x8000u));
  }
  if (kKind == 8) {
    const uint32_t word = words[field_word(8, step, reg)];
    if (IsHalf<T>::value) return add_pair<T>(byte_permute(word, T::kMagic, reg & 1 ? 0x5351 : 0x5250), zero_addend);
    /* BF16 has room for 7 bits beside the magic number; bit 7 is added as 0 or 2.0, times 64. */
    const uint32_t field = reg & 1 ? word >> 8 : word;
    const uint32_t low = add_pair<T>(and_or(field, both(0x7Fu), T::kMagic), both(0xC300u));
    const uint32_t code = fma_pair<T>((field & both(0x80u)) << 7, both(0x4280u), low);
    return add_pair<T>(code, zero_addend);
  }
  const int offset = shifted_rows<T>(kBits) ? 4 * (reg & 1) : 0;
  uint32_t value = T::kMagic;
  VQP_UNROLL
  for (int base = 0; base < kBits; base += plane_width(kBits, base)) {
    const int width = plane_width(kBits, base), target = offset + base;
    const int shift = field_position(width, step, reg) - target;
    const uint32_t word = words[base + field_word(width, step, reg)];
    const uint32_t moved = shift >= 0 ? word >> (shift & 31) : word << (-shift & 31);
    value = and_or(moved, both(((1u << width) - 1) << target), value);
  }
  return offset ? fma_pair<T>(value, both(0x2C00u), zero_addend) : add_pair<T>(value, zero_addend);
}

}  // namespace vqp

#endif
