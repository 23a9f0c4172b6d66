/* The product of 8-bit codes: mma.m16n8k32 over tiles of W (operand A) and x (operand B), scales at the end.
 *
 * ldmatrix reads both operands from plain rows: a 16-byte piece of a row is four lanes' registers, so the weight
 * needs no order of its own and cuBLASLt can read the same tensor. The weight is operand A, so that a batch of
 * one to eight tokens fills the 8 columns of B. INT8 sums are exact, whatever the splits. FP8 sums are taken over
 * in FP32 at the end of each K tile (`kGrouped`), or stay in the tensor cores' accumulators.
 */
#ifndef VQP_CUDA_W8A8_KERNEL_H
#define VQP_CUDA_W8A8_KERNEL_H

#include "w8a8_epilogue.h"
#include "w8a8_loader.h"

namespace vqp {

VQP_DEVICE void mma8(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t *b) { mma_int8(c, a, b); }
VQP_DEVICE void mma8(float (&c)[4], const uint32_t (&a)[4], const uint32_t *b) { mma_e4m3(c, a, b); }

template <int kKind, int kTokens, bool kGrouped>
struct W8Block {
  typedef typename Sum8<kKind>::Type Sum;
  static constexpr bool kSplitK = kTokens <= 64;           /* the second half of the warps: K, else tokens */
  static constexpr int kTiles = (kSplitK ? kTokens : 64) / 8;
  static constexpr int kRows = kRowTiles / kWarpsN;
  static constexpr int kSteps32 = kRow / 32 / (kSplitK ? 2 : 1);

  const W8Params &p;
  const int lane, warp_n, second;
  Sum sum[kRows][kTiles][4];

  VQP_DEVICE explicit W8Block(const W8Params &params)
      : p(params), lane(thread_index() & 31), warp_n((thread_index() >> 5) & (kWarpsN - 1)), second(thread_index() >> 7) {
    VQP_UNROLL
    for (int r = 0; r < kRows; ++r)
      VQP_UNROLL
      for (int t = 0; t < kTiles; ++t)
        VQP_UNROLL
        for (int i = 0; i < 4; ++i) sum[r][t][i] = 0;
  }

  VQP_DEVICE int first_token() const { return kSplitK ? 0 : 64 * second; }

  /* 32 columns. A few tokens at a time: on sm_90, where E4M3 fragments are unpacked to FP16, all would not fit. */
  VQP_DEVICE void multiply_step(Sum (&into)[kRows][kTiles][4], const char *w, const char *x, int step) const {
    uint32_t a[kRows][4];
    VQP_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const int row = (warp_n * kRows + r) * kRowTile + (lane & 15);
      load_matrices(a[r], w + tile_offset(row, 2 * step + (lane >> 4)));
    }
    const int piece = 2 * step + ((lane >> 3) & 1);
    if constexpr (kTiles == 1) {
      uint32_t b[2];
      load_matrices(b, x + tile_offset(lane & 7, piece));
      VQP_UNROLL
      for (int r = 0; r < kRows; ++r) mma8(into[r][0], a[r], b);
    } else {
      VQP_UNROLL
      for (int t = 0; t < kTiles; t += 2) {
        uint32_t b[4]; /* of two tiles of 8 tokens */
        load_matrices(b, x + tile_offset(first_token() + 8 * t + (lane & 7) + 8 * (lane >> 4), piece));
        VQP_UNROLL
        for (int r = 0; r < kRows; ++r) {
          mma8(into[r][t], a[r], b);
          mma8(into[r][t + 1], a[r], b + 2);
        }
      }
    }
  }

  VQP_DEVICE void multiply_tile(Sum (&into)[kRows][kTiles][4], const char *w, const char *x) const {
    if constexpr (kSplitK) {
      VQP_UNROLL
      for (int s = 0; s < kSteps32; ++s) multiply_step(into, w, x, second * kSteps32 + s);
    } else {
      /* Unrolled, the operands of several steps would spill. */
      VQP_UNROLL_BY(1)
      for (int s = 0; s < kSteps32; ++s) multiply_step(into, w, x, s);
    }
  }

  /* One K tile. `w_scale`: block scale of the tile's 128 channels. */
  VQP_DEVICE void compute(const char *stage, const char *x, float w_scale) {
    if constexpr (!kGrouped) {
      multiply_tile(sum, stage, x);
    } else {
      Sum part[kRows][kTiles][4] = {};
      multiply_tile(part, stage, x);
      VQP_UNROLL
      for (int t = 0; t < kTiles; ++t) {
        float scale[2] = {1, 1};
        if (p.call.grouped)
          VQP_UNROLL
          for (int i = 0; i < 2; ++i) {
            const int token = first_token() + 8 * t + c_col(lane, i);
            scale[i] = load_shared<float>(stage + p.scales_at + 4 * token) * w_scale;
          }
        VQP_UNROLL
        for (int r = 0; r < kRows; ++r)
          VQP_UNROLL
          for (int i = 0; i < 4; ++i) sum[r][t][i] += part[r][t][i] * scale[i & 1];
      }
    }
  }

  /* All sums into the block's tile [token][channel]; where the warps share K, the second half adds to the first. */
  VQP_DEVICE void store_sums(char *tile) {
    for (int turn = 0; turn < (kSplitK ? 2 : 1); ++turn) {
      if (!kSplitK || second == turn)
        VQP_UNROLL
        for (int r = 0; r < kRows; ++r)
          VQP_UNROLL
          for (int t = 0; t < kTiles; ++t)
            VQP_UNROLL
            for (int i = 0; i < 4; ++i) {
              const int channel = (warp_n * kRows + r) * kRowTile + c_row(lane, i);
              char *at = tile + 4 * ((first_token() + 8 * t + c_col(lane, i)) * kSumStride + channel);
              const uint32_t word = word_of(sum[r][t][i]);
              store_shared(at, turn ? add_words(load_shared<uint32_t>(at), word, Sum()) : word);
            }
      barrier();
    }
  }
};

template <int kKind, int kTokens, bool kGrouped, bool kFused>
VQP_DEVICE void w8a8_block(const W8Params &p) {
  typedef typename Sum8<kKind>::Type Sum;
  const vqp_cuda_w8a8 &c = p.call;
  const int split = block_x(), m_tile = block_y(), n_tile = block_z();
  char *const ring = shared_memory();
  const Range range = split_range(p.k_tiles, p.splits, split);
  const W8Loader<kTokens, kGrouped, kFused> loader(p, m_tile, n_tile);
  W8Block<kKind, kTokens, kGrouped> block(p);
  /* In a dependent launch the kernel ahead may still be making x: weights are copied before the wait, and the first
   * group of copies then holds those of all first stages. The next kernel may start once all blocks are here. */
  const bool late = kDependentLaunch && p.dependent && !kFused;

  for (int i = 0; i < p.stages - 1; ++i) {
    char *const stage = ring + i * p.stage_bytes;
    if (range.begin + i < range.end) {
      loader.copy_weights(stage, range.begin + i);
      if (!late) loader.copy_x(stage, range.begin + i);
    }
    if (!late) copy_commit();
  }
  if (kDependentLaunch && p.dependent) {
    dependency_wait();
    dependency_launch();
  }
  if (late)
    for (int i = 0; i < p.stages - 1; ++i) {
      if (range.begin + i < range.end) loader.copy_x(ring + i * p.stage_bytes, range.begin + i);
      copy_commit();
    }
  if constexpr (kFused) {
    /* While the first weights are on their way. The barrier of the first tile shows the codes to all. */
    if (c.y_dtype == VQP_CUDA_F16)
      quantize_into_shared<Half, kKind, kTokens>(p, range, ring);
    else
      quantize_into_shared<BFloat16, kKind, kTokens>(p, range, ring);
  }
  const float *const w_scales = c.grouped ? c.w_scales + static_cast<int64_t>(n_tile) * p.k_tiles : nullptr;
  float next_scale = kGrouped && c.grouped && range.begin < range.end ? load_global(w_scales + range.begin) : 0;
  int slot = 0;
  for (int tile = range.begin; tile < range.end; ++tile) {
    /* One group of copies a tile, so all but the last stages - 2 groups hold up to this tile's. The barrier
     * shows every thread's copies to all, and ends all reads of the slot that is filled next. */
    copy_wait(p.stages - 2);
    barrier();
    const int next = tile + p.stages - 1;
    char *const target = ring + (slot == 0 ? p.stages - 1 : slot - 1) * p.stage_bytes;
    if (next < range.end) {
      loader.copy_weights(target, next);
      loader.copy_x(target, next);
    }
    copy_commit();
    const float w_scale = next_scale;
    if (kGrouped && c.grouped && tile + 1 < range.end) next_scale = load_global(w_scales + tile + 1);
    converge();
    const char *const stage = ring + slot * p.stage_bytes;
    block.compute(stage, kFused ? ring + p.codes_at + (tile - range.begin) * kTokens * kRow : stage + p.x_at, w_scale);
    slot = slot + 1 == p.stages ? 0 : slot + 1;
  }
  copy_wait(0);
  barrier();
  block.store_sums(ring);

  /* With a cluster, block `split` of it finishes its share of the tile: the sum over blocks, in their order. */
  int first = thread_index(), stride = kThreads;
  if (p.clustered) cluster_barrier(), first += split * kThreads, stride *= p.splits;
  const int64_t rows = static_cast<int64_t>(grid_y()) * kTokens;
  for (int i = first; i < kTokens * kTileN / 2; i += stride) {
    const int token = i / (kTileN / 2), column = 2 * (i % (kTileN / 2));
    const int64_t channel = static_cast<int64_t>(n_tile) * kTileN + column;
    const int64_t row = static_cast<int64_t>(m_tile) * kTokens + token;
    if (channel >= c.n || row >= c.m) continue;
    const char *const at = ring + 4 * (token * kSumStride + column);
    const bool pair = channel + 1 < c.n;
    float scale = 0;
    int32_t zero = 0;
    if constexpr (kFused) {
      scale = load_shared<float>(ring + p.table_at + 4 * token);
      zero = load_shared<int32_t>(ring + p.table_at + 4 * (kTokens + token));
    } else if (!p.partial && !c.grouped) {
      scale = load_written(c.x_scales + row * c.x_scale_stride);
      if (c.x_zeros) zero = load_written(c.x_zeros + row * c.x_scale_stride);
    }
    uint32_t low = load_shared<uint32_t>(at), high = load_shared<uint32_t>(at + 4);
    if (p.partial) {
      uint32_t *const to = p.partial + (split * rows + row) * c.n + channel;
      store_global(to, low);
      if (pair) store_global(to + 1, high);
      if (kFused && split == 0 && n_tile == 0 && column == 0) {
        store_global(p.row_scales + row, scale);
        store_global(p.row_zeros + row, zero);
      }
      continue;
    }
    if (p.clustered) {
      low = as_bits(load_cluster(at, 0)), high = as_bits(load_cluster(at + 4, 0));
      for (int rank = 1; rank < p.splits; ++rank) {
        low = add_words(low, as_bits(load_cluster(at, rank)), Sum());
        high = add_words(high, as_bits(load_cluster(at + 4, rank)), Sum());
      }
    }
    store_pair(c, row, channel, finish<kKind>(c, low, channel, scale, zero),
               pair ? finish<kKind>(c, high, channel + 1, scale, zero) : 0.0f);
  }
  if (p.clustered) cluster_barrier(); /* a block's sums live until all have read them */
}

}  // namespace vqp

#endif
