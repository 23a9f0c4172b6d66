/* The packed weight of the CUDA kernels: A fragments of mma.m16n8k16 in bit planes. Drawn in docs/internals/cuda.md.
 *
 *   data   [N/16 row tiles][K/64 slabs][planes of one slab]      128 * bits bytes per slab
 *   slab   16 rows x 64 columns = 4 k16 steps; lane l holds the 8 codes of its A fragment of each step
 *   plane  of width p (bits 2: 2 | 3: 2,1 | 4: 4 | 5: 4,1 | 6: 4,2 | 7: 4,2,1 | 8: 8; low bits first):
 *          p words per lane, [lane][p words]; width 8: [2 halves][lane][4 words]
 *
 * Register r of step s keeps its pair (k, k + 1) at bit `position` of the low and high 16 bits of a word:
 *   width 8   word 2s + r/2   bit 8 (r % 2)
 *         4   word s          bit 4 r
 *         2   word s / 2      bit 4 r + 2 (s % 2)
 *         1   word 0          bit 4 r + s
 * so for every width a 4-bit field of the 16 belongs to one register, and registers 0, 1 and 2, 3 are one shift by 8
 * apart.
 */
#ifndef VQP_CUDA_LAYOUT_H
#define VQP_CUDA_LAYOUT_H

#include "fragments.h"

namespace vqp {

constexpr int kRowTile = 16;
constexpr int kSlab = 64;
constexpr int kStep = 16;
constexpr int kSteps = kSlab / kStep;
constexpr int kFp8 = 9; /* the weight kind after the integer widths 2..8 */

VQP_HD constexpr int bits_of(int kind) { return kind == kFp8 ? 8 : kind; }
VQP_HD constexpr int slab_bytes(int bits) { return 128 * bits; }

/* Width of the plane that begins at bit `base` of a code; base + width is where the next one begins. */
VQP_HD constexpr int plane_width(int bits, int base) {
  return bits == 8 ? 8 : bits - base >= 4 ? 4 : bits - base >= 2 ? 2 : 1;
}

VQP_HD constexpr int field_word(int width, int step, int reg) {
  return width == 8 ? 2 * step + (reg >> 1) : width == 4 ? step : width == 2 ? step >> 1 : 0;
}
VQP_HD constexpr int field_position(int width, int step, int reg) {
  return width == 8 ? 8 * (reg & 1) : width == 4 ? 4 * reg : width == 2 ? 4 * reg + 2 * (step & 1) : 4 * reg + step;
}

/* Byte offset in a slab of a lane's words [word, word + 4) or fewer: the planes before it take 128 bytes per bit. */
VQP_HD constexpr int word_offset(int width, int base, int lane, int word) {
  return width == 8 ? (word >> 2) * 512 + lane * 16 + (word & 3) * 4 : base * 128 + (lane * width + word) * 4;
}

/* Where word `index` (in memory order) of a slab belongs: the inverse of word_offset. */
struct WordPlace {
  int base, width, lane, word;
};
VQP_HD WordPlace word_place(int bits, int index) {
  if (bits == 8) return {0, 8, (index >> 2) & 31, (index & 3) + 4 * (index >> 7)};
  int base = 0;
  while (index >= 32 * (base + plane_width(bits, base))) base += plane_width(bits, base);
  const int width = plane_width(bits, base), inside = index - 32 * base;
  return {base, width, inside / width, inside % width};
}

/* One word of a slab from its codes; code(row, column) is called for columns [0, 64) of the slab. */
template <class Code>
VQP_HD uint32_t pack_word(int bits, int index, Code code) {
  const WordPlace place = word_place(bits, index);
  const uint32_t mask = (1u << place.width) - 1;
  uint32_t word = 0;
  for (int step = 0; step < kSteps; ++step)
    for (int reg = 0; reg < 4; ++reg) {
      if (field_word(place.width, step, reg) != place.word) continue;
      const int position = field_position(place.width, step, reg);
      for (int half = 0; half < 2; ++half) {
        const uint32_t c = code(a_row(place.lane, reg), step * kStep + a_col(place.lane, reg, half));
        word |= ((c >> place.base) & mask) << (16 * half + position);
      }
    }
  return word;
}

}  // namespace vqp

#endif
