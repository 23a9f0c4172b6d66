/* The W8A8 GEMM: mma.m16n8k32 over tiles of W (operand A) and x (operand B), with scales in the epilogue.
 *
 * ldmatrix reads both operands from plain row-major tiles: 16 bytes of a row are the registers of four lanes. So the
 * weight needs no packed order, and cuBLASLt can read the same tensor. The weight is operand A, so that a batch of one
 * to eight tokens fills the 8 columns of B. INT8 accumulation is exact for any split-K. FP8 accumulates in FP32 after
 * each K tile (`kGrouped`) or stays in the tensor cores' accumulators.
 */
#ifndef VQP_CUDA_W8A8_KERNEL_H
#define VQP_CUDA_W8A8_KERNEL_H

#include "w8a8_epilogue.h"
#include "w8a8_loader.h"

namespace vqp {

VQP_DEVICE void mma8(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t *b) { mma_int8(c, a, b); }
VQP_DEVICE void mma8(float (&c)[4], const uint32_t (&a)[4], const uint32_t *b) { mma_e4m3(c, a, b); }

template <int kKind, int kTokens, bool kGrouped>
struct W8a8Mainloop {
  typedef typename Accumulator8<kKind>::Type Sum;
  static constexpr bool kSplitK = kTokens <= 64; /* whether the two halves of the warps divide K, or the tokens */
  static constexpr int kTiles = (kSplitK ? kTokens : 64) / 8;
  static constexpr int kRows = kRowTiles / kWarpsN;
  static constexpr int kSteps32 = kRow / 32 / (kSplitK ? 2 : 1);

  const W8a8Params &p;
  const int lane, warp_n, second;
  Sum accumulators[kRows][kTiles][4];

  VQP_DEVICE explicit W8a8Mainloop(const W8a8Params &params)
      : p(params),
        lane(thread_index() & 31),
        warp_n((thread_index() >> 5) & (kWarpsN - 1)),
        second(thread_index() >> 7) {
    VQP_UNROLL
    for (int r = 0; r < kRows; ++r)
      VQP_UNROLL
      for (int t = 0; t < kTiles; ++t)
        VQP_UNROLL
        for (int i = 0; i < 4; ++i) accumulators[r][t][i] = 0;
  }

  VQP_DEVICE int first_token() const { return kSplitK ? 0 : 64 * second; }

  /* 32 columns of K. B fragments are loaded for 16 tokens at a time: on sm_90, which unpacks E4M3 fragments to FP16,
   * all of them would not fit in registers. */
  VQP_DEVICE void multiply_step(Sum (&acc)[kRows][kTiles][4], const char *w, const char *x, int step) const {
    uint32_t a[kRows][4];
    VQP_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const int row = (warp_n * kRows + r) * kRowTile + (lane & 15);
      ldmatrix(a[r], w + tile_offset(row, 2 * step + (lane >> 4)));
    }
    const int piece = 2 * step + ((lane >> 3) & 1);
    if constexpr (kTiles == 1) {
      uint32_t b[2];
      ldmatrix(b, x + tile_offset(lane & 7, piece));
      VQP_UNROLL
      for (int r = 0; r < kRows; ++r) mma8(acc[r][0], a[r], b);
    } else {
      VQP_UNROLL
      for (int t = 0; t < kTiles; t += 2) {
        uint32_t b[4]; /* of two tiles of 8 tokens */
        ldmatrix(b, x + tile_offset(first_token() + 8 * t + (lane & 7) + 8 * (lane >> 4), piece));
        VQP_UNROLL
        for (int r = 0; r < kRows; ++r) {
          mma8(acc[r][t], a[r], b);
          mma8(acc[r][t + 1], a[r], b + 2);
        }
      }
    }
  }

  VQP_DEVICE void multiply_tile(Sum (&acc)[kRows][kTiles][4], const char *w, const char *x) const {
    if constexpr (kSplitK) {
      VQP_UNROLL
      for (int s = 0; s < kSteps32; ++s) multiply_step(acc, w, x, second * kSteps32 + s);
    } else {
      /* Not unrolled: the operands of several steps would spill. */
      VQP_UNROLL_BY(1)
      for (int s = 0; s < kSteps32; ++s) multiply_step(acc, w, x, s);
    }
  }

  /* One K tile. `w_scale`: block scale of the 128 x 128 tile of W. */
  VQP_DEVICE void compute(const char *stage, const char *x, float w_scale) {
    if constexpr (!kGrouped) {
      multiply_tile(accumulators, stage, x);
    } else {
      Sum tile_accumulators[kRows][kTiles][4] = {};
      multiply_tile(tile_accumulators, stage, x);
      VQP_UNROLL
      for (int t = 0; t < kTiles; ++t) {
        float scale[2] = {1, 1};
        if (p.call.grouped)
          VQP_UNROLL
          for (int i = 0; i < 2; ++i) {
            const int token = first_token() + 8 * t + c_col(lane, i);
            scale[i] = load_shared<float>(stage + p.scales_offset + 4 * token) * w_scale;
          }
        VQP_UNROLL
        for (int r = 0; r < kRows; ++r)
          VQP_UNROLL
          for (int i = 0; i < 4; ++i) accumulators[r][t][i] += tile_accumulators[r][t][i] * scale[i & 1];
      }
    }
  }

  /* Store all accumulators to the CTA's tile [token][channel]. Where the warps divide K, the second half adds to the
   * first. */
  VQP_DEVICE void store_accumulators(char *tile) {
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
              const uint32_t word = word_of(accumulators[r][t][i]);
              store_shared(at, turn ? add_words(load_shared<uint32_t>(at), word, Sum()) : word);
            }
      syncthreads();
    }
  }
};

template <int kKind, int kTokens, bool kGrouped, bool kFused>
VQP_DEVICE void w8a8_cta(const W8a8Params &p) {
  typedef typename Accumulator8<kKind>::Type Sum;
  const vqp_cuda_w8a8 &c = p.call;
  const int split = cta_x(), m_tile = cta_y(), n_tile = cta_z();
  char *const ring = shared_memory();
  const Range range = split_range(p.k_tiles, p.splits, split);
  const W8a8Loader<kTokens, kGrouped, kFused> loader(p, m_tile, n_tile);
  W8a8Mainloop<kKind, kTokens, kGrouped> mainloop(p);
  /* In a dependent launch the preceding kernel may still be writing x. Weights are copied before the wait, and the
   * first cp.async group then holds those of all prologue stages. The next kernel may start once all CTAs are here. */
  const bool late = kDependentLaunch && p.dependent && !kFused;

  for (int i = 0; i < p.stages - 1; ++i) {
    char *const stage = ring + i * p.stage_bytes;
    if (range.begin + i < range.end) {
      loader.copy_weights(stage, range.begin + i);
      if (!late) loader.copy_x(stage, range.begin + i);
    }
    if (!late) cp_async_commit();
  }
  if (kDependentLaunch && p.dependent) {
    griddep_wait();
    griddep_launch_dependents();
  }
  if (late)
    for (int i = 0; i < p.stages - 1; ++i) {
      if (range.begin + i < range.end) loader.copy_x(ring + i * p.stage_bytes, range.begin + i);
      cp_async_commit();
    }
  if constexpr (kFused) {
    /* While the first weights are in flight. The barrier of the first K tile makes the codes visible to all. */
    if (c.y_dtype == VQP_CUDA_F16)
      quantize_into_shared<Half, kKind, kTokens>(p, range, ring);
    else
      quantize_into_shared<BFloat16, kKind, kTokens>(p, range, ring);
  }
  const float *const w_scales = c.grouped ? c.w_scales + static_cast<int64_t>(n_tile) * p.k_tiles : nullptr;
  float next_scale = kGrouped && c.grouped && range.begin < range.end ? load_global(w_scales + range.begin) : 0;
  int slot = 0;
  for (int tile = range.begin; tile < range.end; ++tile) {
    /* There is one cp.async group per K tile, so with at most stages - 2 groups in flight this tile has arrived. The
     * barrier makes every thread's copies visible to all, and ends all reads of the stage that is refilled next. */
    cp_async_wait(p.stages - 2);
    syncthreads();
    const int next = tile + p.stages - 1;
    char *const target = ring + (slot == 0 ? p.stages - 1 : slot - 1) * p.stage_bytes;
    if (next < range.end) {
      loader.copy_weights(target, next);
      loader.copy_x(target, next);
    }
    cp_async_commit();
    const float w_scale = next_scale;
    if (kGrouped && c.grouped && tile + 1 < range.end) next_scale = load_global(w_scales + tile + 1);
    syncwarp();
    const char *const stage = ring + slot * p.stage_bytes;
    const char *const codes =
        kFused ? ring + p.codes_offset + (tile - range.begin) * kTokens * kRow : stage + p.x_offset;
    mainloop.compute(stage, codes, w_scale);
    slot = slot + 1 == p.stages ? 0 : slot + 1;
  }
  cp_async_wait(0);
  syncthreads();
  mainloop.store_accumulators(ring);

  /* With a cluster, each CTA finishes its share of the tile: the sum over the CTAs, in the order of their ranks. */
  int first = thread_index(), stride = kThreads;
  if (p.clustered) cluster_sync(), first += split * kThreads, stride *= p.splits;
  const int64_t rows = static_cast<int64_t>(grid_dim_y()) * kTokens;
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
      scale = load_shared<float>(ring + p.table_offset + 4 * token);
      zero = load_shared<int32_t>(ring + p.table_offset + 4 * (kTokens + token));
    } else if (!p.partial && !c.grouped) {
      scale = load_coherent(c.x_scales + row * c.x_scale_stride);
      if (c.x_zeros) zero = load_coherent(c.x_zeros + row * c.x_scale_stride);
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
      low = as_bits(load_shared_cluster(at, 0)), high = as_bits(load_shared_cluster(at + 4, 0));
      for (int rank = 1; rank < p.splits; ++rank) {
        low = add_words(low, as_bits(load_shared_cluster(at, rank)), Sum());
        high = add_words(high, as_bits(load_shared_cluster(at + 4, rank)), Sum());
      }
    }
    store_pair(c, row, channel, finish<kKind>(c, low, channel, scale, zero),
               pair ? finish<kKind>(c, high, channel + 1, scale, zero) : 0.0f);
  }
  if (p.clustered) cluster_sync(); /* no CTA exits while others read its accumulators */
}

}  // namespace vqp

#endif
