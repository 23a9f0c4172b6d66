/* Packing on the device: one thread per word, through the same map as on the CPU. */
#ifndef VQP_CUDA_PACK_KERNEL_H
#define VQP_CUDA_PACK_KERNEL_H

#include "layout.h"
#include "ptx.h"
#include "tiles.h"

namespace vqp {

struct PackParams {
  const uint8_t *codes; /* (n, k) */
  const int32_t *perm;  /* null, or (k_padded): the column of `codes` at each packed column, -1 for padding */
  uint32_t *data;
  int64_t n, k, k_padded;
  int bits;
};

VQP_HD int64_t pack_words(const PackParams &p) {
  return ceil_div(p.n, kRowTile) * (p.k_padded / kSlab) * slab_bytes(p.bits) / 4;
}

VQP_DEVICE void pack_cta(const PackParams &p) {
  const int64_t at = static_cast<int64_t>(cta_x()) * kThreads + thread_index();
  if (at >= pack_words(p)) return;
  const int words = slab_bytes(p.bits) / 4;
  const int64_t slab = at / words, slabs = p.k_padded / kSlab;
  const int64_t first_row = slab / slabs * kRowTile, first_column = slab % slabs * kSlab;
  const uint32_t word = pack_word(p.bits, static_cast<int>(at % words), [&](int row, int column) -> uint32_t {
    const int64_t n = first_row + row, packed = first_column + column;
    const int64_t k = p.perm ? load_global(p.perm + packed) : packed;
    return n < p.n && k >= 0 && k < p.k ? load_global(p.codes + n * p.k + k) : 0;
  });
  store_global(p.data + at, word);
}

}  // namespace vqp

#endif
