/* Global memory to a stage of the ring: codes, scales, zero points, and activations with their act-order gather. */
#ifndef VQP_CUDA_WNA16_LOADER_H
#define VQP_CUDA_WNA16_LOADER_H

#include "wna16_params.h"
#include "ptx.h"

namespace vqp {

struct alignas(8) Words2 {
  uint32_t v[2];
};
struct alignas(16) Words4 {
  uint32_t v[4];
};

template <class T, int kKind, int kTokens>
struct Wna16Loader {
  static constexpr int kBits = bits_of(kKind);
  static constexpr int kChunks = kTokens * kTileK / 8; /* of 8 activations, per stage */
  static constexpr int kCopies = (kChunks + kThreads - 1) / kThreads;

  static constexpr int kSlabChunks = slab_bytes(kBits) / 16;

  /* This thread's position in everything it copies, so that each copy costs one multiplication and one comparison per K
   * tile. Warp w copies row tile w. A copy that is not valid reads nothing, so its address may be anywhere. */
  const Wna16Params &p;
  const int warp, lane;
  const uint8_t *codes;       /* at K tile 0 */
  const char *scales, *zeros; /* at group 0 */
  int code_chunks;            /* from this lane's first chunk to the end of the row tile; 0 past the last row tile */
  int table_groups;           /* groups of the row tile; 0 past the last one */
  const int32_t *perm;
  int64_t first_row; /* of the CTA, among the rows of all tiles */
  const char *x_rows[kCopies]; /* this thread's chunk of tokens tid / 16 + 16 j; null without such a token */
  int x_columns;               /* from the chunk's first column to the end of token 0's row; 0 without it */

  VQP_DEVICE Wna16Loader(const Wna16Params &params, int m_tile, int n_tile, int64_t expert)
      : p(params), warp(thread_index() >> 5), lane(thread_index() & 31),
        first_row(static_cast<int64_t>(m_tile) * kTokens) {
    const vqp_cuda_linear &c = p.call;
    const int64_t row_tile = expert * p.row_tiles + n_tile * kRowTiles + warp;
    const bool exists = n_tile * kRowTiles + warp < p.row_tiles;
    codes = c.data + row_tile * p.slabs * slab_bytes(kBits) + 16 * lane;
    code_chunks = exists ? p.slabs * kSlabChunks - lane : 0;
    scales = static_cast<const char *>(c.scales) + row_tile * c.groups * kRowTile * p.scale_bytes + 16 * lane;
    zeros = static_cast<const char *>(c.zeros) + row_tile * c.groups * kRowTile * p.zero_bytes + 16 * lane;
    table_groups = exists ? static_cast<int>(c.groups) : 0;
    perm = c.perm ? c.perm + expert * c.k_padded : nullptr;
    VQP_UNROLL
    for (int j = 0; j < kCopies; ++j) {
      const int token = (thread_index() >> 4) + 16 * j;
      const int64_t pair = token < kTokens ? source(token) : -1;
      x_rows[j] = pair < 0 ? nullptr : x_row(pair) + 16 * (thread_index() & 15);
      if (j == 0) x_columns = pair < 0 ? 0 : static_cast<int>(c.k) - 8 * (thread_index() & 15);
    }
  }

  /* With one chunk per thread, an additional register (x_columns) saves instructions; with more chunks there is none to
   * spare. */
  VQP_DEVICE bool x_valid(int j, int tile) const {
    if (kCopies == 1) return tile * kTileK < x_columns;
    return x_rows[j] && tile * kTileK + 8 * (thread_index() & 15) < static_cast<int>(p.call.k);
  }

  /* Byte offset in a stage of chunk `chunk` of a token's activations. */
  VQP_DEVICE int x_offset_in_stage(int token, int chunk) const {
    return p.stage.x + (kTokens < kWideTokens ? x_offset(token, chunk) : wide_x_offset(kTokens, token, chunk));
  }
  VQP_DEVICE int64_t source(int token) const {
    return pair_of(p.call, first_row + token, [](const int32_t *row) { return load_coherent(row); });
  }
  VQP_DEVICE const char *x_row(int64_t pair) const {
    return static_cast<const char *>(p.call.x) + 2 * p.call.x_stride * x_row_of(p.call, pair);
  }

  /* Start the copies of K tile `tile` into `stage`. The slabs of a row tile are contiguous. */
  VQP_DEVICE void copy_weights(char *stage, int tile) const {
    const uint8_t *const from = codes + static_cast<int64_t>(tile) * (2 * slab_bytes(kBits));
    const int left = code_chunks - tile * (2 * kSlabChunks);
    char *const to = stage + 16 * (warp * 2 * kSlabChunks + lane);
    VQP_UNROLL
    for (int j = 0; j < (2 * kSlabChunks + 31) / 32; ++j) {
      if (2 * kSlabChunks % 32 && lane + 32 * j >= 2 * kSlabChunks) break;
      cp_async(to + 512 * j, from + 512 * j, 32 * j < left);
    }
    copy_table(stage + p.stage.scales, scales, p.scale_bytes, tile);
    if (p.zero_bytes) copy_table(stage + p.stage.zeros, zeros, p.zero_bytes, tile);
  }

  /* Copy [row tile][group of the K tile][16] out of a table [row tile][groups][16] of elements of `size` bytes. At
   * most 8 groups of 4-byte elements: 32 chunks per row tile, one per lane. */
  VQP_DEVICE void copy_table(char *to, const char *table, int size, int tile) const {
    const int width = groups_of_tile(p.group_shift) * size;
    if (lane >= width) return;
    const int first = (tile * (kTileK / kStep)) >> p.group_shift;
    cp_async(to + 16 * (warp * width + lane), table + 16 * first * size, lane < (table_groups - first) * size);
  }

  VQP_DEVICE void copy_x(char *stage, int tile) const {
    VQP_UNROLL
    for (int j = 0; j < kCopies; ++j) {
      const int token = (thread_index() >> 4) + 16 * j, chunk = thread_index() & 15;
      if (kChunks % kThreads && token >= kTokens) break;
      const char *const from = x_rows[j] + static_cast<int64_t>(tile) * (kTileK * 2);
      cp_async(stage + x_offset_in_stage(token, chunk), from, x_valid(j, tile));
    }
  }

  /* The same activations one element at a time, through the permutation of act-order. */
  VQP_DEVICE void gather_x(char *stage, int tile) const {
    const int pair = thread_index() & 63, column = tile * kTileK + 2 * pair;
    int from[2];
    VQP_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int at = column + half;
      from[half] = perm ? (at < p.call.k_padded ? load_global(perm + at) : -1) : at < p.call.k ? at : -1;
    }
    VQP_UNROLL_BY(4)
    for (int token = thread_index() >> 6; token < kTokens; token += kThreads / 64) {
      const int64_t row = source(token);
      const uint16_t *x = reinterpret_cast<const uint16_t *>(row < 0 ? nullptr : x_row(row));
      uint32_t two = x && from[0] >= 0 ? load_coherent(x + from[0]) : 0;
      two |= static_cast<uint32_t>(x && from[1] >= 0 ? load_coherent(x + from[1]) : 0) << 16;
      store_shared(stage + x_offset_in_stage(token, pair >> 2) + 4 * (pair & 3), two);
    }
  }

  /* Load the activations of the first K tiles of `range` into all stages but the last, without cp.async: its groups
   * complete in order, so the activations of the first tile would wait for the weights of all these stages. Each thread
   * has several loads in flight. */
  VQP_DEVICE void load_x_directly(char *ring, const Range &range) const {
    const int tile = range.begin;
    const int count = range.end - tile < p.stages - 1 ? range.end - tile : p.stages - 1;
    if (p.x_element_wise) {
      for (int i = 0; i < count; ++i) gather_x(ring + i * p.stage.bytes, tile + i);
      return;
    }
    constexpr int kBatch = kCopies < 8 ? 8 / kCopies : 1;
    const int chunk = thread_index() & 15;
    for (int first = 0; first < count; first += kBatch) {
      Words4 loaded[kBatch][kCopies];
      VQP_UNROLL
      for (int i = 0; i < kBatch; ++i)
        VQP_UNROLL
        for (int j = 0; j < kCopies; ++j) {
          const int at = tile + first + i;
          loaded[i][j] = {};
          if (first + i < count && x_valid(j, at))
            loaded[i][j] = load_coherent(
                reinterpret_cast<const Words4 *>(x_rows[j] + static_cast<int64_t>(at) * kTileK * 2));
        }
      VQP_UNROLL
      for (int i = 0; i < kBatch; ++i)
        VQP_UNROLL
        for (int j = 0; j < kCopies; ++j) {
          const int token = (thread_index() >> 4) + 16 * j;
          if (first + i < count && token < kTokens)
            store_shared(ring + (first + i) * p.stage.bytes + x_offset_in_stage(token, chunk), loaded[i][j]);
        }
    }
  }

  VQP_DEVICE void load_x(char *stage, int tile) const {
    if (p.x_element_wise)
      gather_x(stage, tile);
    else
      copy_x(stage, tile);
  }
};

}  // namespace vqp

#endif
