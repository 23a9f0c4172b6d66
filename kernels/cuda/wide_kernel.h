/* The weight-only product for large batches on sm_90a: two warpgroups, wgmma with the dequantized weight in registers.
 *
 *   block       128 channels x 128 or 256 tokens; warp w dequantizes row tile w, a warpgroup multiplies 64 channels
 *   K tile      8 steps of 16 columns; each step is two products, one for each half of the tokens
 *   overlap     while the products of a step run, the next step's fragments are dequantized into the other buffer, over
 *               the border of K tiles too. At the end of a group the first half of the sums is scaled behind the second
 *               half's last product; the tensor cores idle for the second half alone (the other warpgroup may use them)
 *
 * Sums are scaled in FP32 as in the small kernel, so weights are not rounded here either. kScaleOnce: one scale a row,
 * applied at the very end; then no second set of sums is needed, and a block may have 256 tokens.
 *
 * What ptxas serializes, and says so (C7510 and the like; tests/cuda/test_compile.py refuses it): a read of one half's
 * sums while the other half's products cross the end of the loop. So each group ends with all products done.
 */
#ifndef VQP_CUDA_WIDE_KERNEL_H
#define VQP_CUDA_WIDE_KERNEL_H

#include "wgmma.h"
#include "wna16_kernel.h"

namespace vqp {

template <class T, int kKind, int kTokens, bool kScaleOnce>
struct WideBlock {
  static constexpr int kBits = bits_of(kKind);
  static constexpr int kTiles = kTokens / 16; /* mma tiles of 8 tokens, in each half */
  static constexpr uint32_t kMiddle = 1u << (kBits - 1);
  static constexpr int kTileSteps = kTileK / kStep;

  const Params &p;
  const int lane, warp;
  float sum[2][kTiles][4];
  float part[kScaleOnce ? 1 : 2][kScaleOnce ? 1 : kTiles][4]; /* of the group */
  uint32_t a[2][4], constant[2], words[kBits];
  uint64_t column; /* descriptor of the prepared step */
  float scale[2]; /* of the group */

  VQP_DEVICE explicit WideBlock(const Params &params)
      : p(params), lane(thread_index() & 31), warp(thread_index() >> 5) {
    VQP_UNROLL
    for (int half = 0; half < 2; ++half) {
      constant[half] = zero_constant<T, kKind>(kMiddle, half);
      scale[half] = 0;
      VQP_UNROLL
      for (int t = 0; t < kTiles; ++t)
        VQP_UNROLL
        for (int i = 0; i < 4; ++i) {
          sum[half][t][i] = 0;
          if (!kScaleOnce) part[kScaleOnce ? 0 : half][kScaleOnce ? 0 : t][i] = 0;
        }
    }
    VQP_UNROLL
    for (int i = 0; i < 4; ++i) a[0][i] = a[1][i] = 0;
  }

  VQP_DEVICE int table_index(int step, int half) const {
    const int groups = groups_of_tile(p.group_shift);
    return (warp * groups + (step >> p.group_shift)) * kRowTile + (lane >> 2) + 8 * half;
  }
  VQP_DEVICE void load_zeros(const char *stage, int step) {
    VQP_UNROLL
    for (int half = 0; half < 2; ++half)
      constant[half] =
          zero_constant<T, kKind>(load_shared<uint8_t>(stage + p.stage.zeros + table_index(step, half)), half);
  }
  VQP_DEVICE void load_scales(const char *stage, int step) {
    const char *const scales = stage + p.stage.scales;
    VQP_UNROLL
    for (int half = 0; half < 2; ++half)
      scale[half] = widen(
          p.call.scale_dtype, table_index(step, half),
          [&](int64_t i) { return load_shared<uint16_t>(scales + 2 * i); },
          [&](int64_t i) { return load_shared<float>(scales + 4 * i); });
  }

  /* Add the scaled sums of the group, of one half of the tokens. */
  VQP_DEVICE void flush(int half) {
    VQP_UNROLL
    for (int t = 0; t < kTiles; ++t)
      VQP_UNROLL
      for (int i = 0; i < 4; ++i) sum[half][t][i] += scale[i >> 1] * part[half][t][i];
  }

  /* Fragments of step `step` into their buffer; descriptor of its first half of the tokens. */
  template <int kRun>
  VQP_DEVICE uint64_t prepare(const char *stage, int step) {
    if (step % kSteps == 0) load_words<kBits>(words, stage + (warp * 2 + step / kSteps) * slab_bytes(kBits), lane);
    if (p.zero_bytes && step % kRun == 0) load_zeros(stage, step);
    uint32_t(&now)[4] = a[step & 1];
    wgmma_wait<2>(now); /* the products of the step before the last have read it */
    VQP_UNROLL
    for (int reg = 0; reg < 4; ++reg) now[reg] = dequantize<T, kKind>(words, step % kSteps, reg, constant[reg & 1]);
    /* 16 columns are 32 bytes, 64 columns a tile of their own; descriptors count 16 bytes. */
    return tile_descriptor(shared_address(stage + p.stage.x)) + step % kSteps * 2 +
           step / kSteps * (kTokens * kSwizzleRow >> 4);
  }
  static constexpr int kSecondHalf = kTokens / 2 * kSwizzleRow >> 4;

  /* A K tile whose first step is prepared; prepares the next tile's first step, if `kMore`. Returns the next stage.
   * kRun: steps of a group, 8 where a group is not shorter than the tile. */
  template <int kRun, bool kMore, class Ring>
  VQP_DEVICE const char *compute(Ring &ring, const char *stage, int tile) {
    const char *next = stage;
    VQP_UNROLL
    for (int step = 0; step < kTileSteps; ++step) {
      wgmma_fence();
      wgmma<T>(part[0], a[step & 1], column, step % kRun);
      wgmma_commit();
      wgmma<T>(part[1], a[step & 1], column + kSecondHalf, step % kRun);
      wgmma_commit();
      const bool ends = step % kRun == kRun - 1;
      if (ends) load_scales(stage, step);
      if (step < kTileSteps - 1) {
        column = prepare<kRun>(stage, step + 1);
      } else if (kMore) {
        next = ring.next(tile + 1);
        column = prepare<kRun>(next, 0);
      }
      if (ends) {
        wgmma_wait<1>(part[0]);
        flush(0);
        wgmma_wait<0>(part[1]);
        flush(1);
      }
    }
    return next;
  }

  /* The same where scales wait for the end: `follows`: not the first K tile of the block. */
  VQP_DEVICE void compute_once(const char *stage, bool follows) {
    VQP_UNROLL
    for (int step = 0; step < kTileSteps; ++step) {
      const uint64_t b = prepare<kTileSteps>(stage, step);
      wgmma_fence();
      wgmma<T>(sum[0], a[step & 1], b, step || follows);
      wgmma_commit();
      wgmma<T>(sum[1], a[step & 1], b + kSecondHalf, step || follows);
      wgmma_commit();
    }
  }

  /* The end of that. `stage`: any K tile of the block. */
  VQP_DEVICE void scale_sums(const char *stage) {
    wgmma_wait<0>(sum[0]);
    wgmma_wait<0>(sum[1]);
    load_scales(stage, 0);
    VQP_UNROLL
    for (int half = 0; half < 2; ++half)
      VQP_UNROLL
      for (int t = 0; t < kTiles; ++t)
        VQP_UNROLL
        for (int i = 0; i < 4; ++i) sum[half][t][i] *= scale[i >> 1];
  }

  VQP_DEVICE void store_sums(float *tile) {
    VQP_UNROLL
    for (int half = 0; half < 2; ++half)
      VQP_UNROLL
      for (int t = 0; t < kTiles; ++t)
        VQP_UNROLL
        for (int i = 0; i < 4; ++i)
          store_shared(tile + (half * kTokens / 2 + 8 * t + c_col(lane, i)) * kSumStride + warp * kRowTile + c_row(lane, i),
                       sum[half][t][i]);
    barrier();
  }
};

/* The ring of a wide block: K tile after K tile, each two ahead of its use. */
template <class T, int kKind, int kTokens>
struct WideRing {
  const Params &p;
  const Loader<T, kKind, kTokens> &loader;
  char *const ring;
  const Range range;
  static constexpr int kStages = wide_stages(kTokens);
  static constexpr int kAhead = kStages - 2; /* the slot that is filled next was read two tiles ago */
  int slot = 0;

  VQP_DEVICE WideRing(const Params &params, const Loader<T, kKind, kTokens> &l, char *memory, const Range &tiles)
      : p(params), loader(l), ring(memory), range(tiles) {
    for (int i = 0; i < kAhead; ++i) {
      if (range.begin + i < range.end) {
        loader.copy_weights(ring + i * p.stage.bytes, range.begin + i);
        loader.load_x(ring + i * p.stage.bytes, range.begin + i);
      }
      copy_commit();
    }
  }

  /* The stage of K tile `tile`. The barrier shows every thread's copies to all, and to wgmma; it also ends all reads
   * of the tile before the last. */
  VQP_DEVICE const char *next(int tile) {
    copy_wait<kAhead - 1>();
    proxy_fence();
    barrier();
    const int target = slot + kAhead < kStages ? slot + kAhead : slot + kAhead - kStages;
    if (tile + kAhead < range.end) {
      loader.copy_weights(ring + target * p.stage.bytes, tile + kAhead);
      loader.load_x(ring + target * p.stage.bytes, tile + kAhead);
    }
    copy_commit();
    converge();
    const char *const stage = ring + slot * p.stage.bytes;
    slot = slot + 1 == kStages ? 0 : slot + 1;
    return stage;
  }
};

template <int kRun, class Ring, class Block>
VQP_DEVICE void wide_loop(Ring &ring, Block &block) {
  const int last = ring.range.end - 1;
  const char *stage = ring.next(ring.range.begin);
  block.column = block.template prepare<kRun>(stage, 0);
  for (int tile = ring.range.begin; tile < last; ++tile) stage = block.template compute<kRun, true>(ring, stage, tile);
  block.template compute<kRun, false>(ring, stage, last);
}

template <class T, int kKind, int kTokens, bool kScaleOnce>
VQP_DEVICE void wide_block(const Params &p) {
  const vqp_cuda_linear &c = p.call;
  const int split = block_x(), m_tile = block_y(), n_tile = block_z();
  const int64_t first_row = static_cast<int64_t>(m_tile) * kTokens;
  if (kDependentLaunch && p.dependent) dependency_wait(), dependency_launch();
  if (c.rows && first_row >= load_written(c.padded_rows)) return; /* all blocks of a cluster agree */
  const int64_t expert = c.rows ? load_written(c.experts + m_tile) : 0;
  if (!holds_expert(c, expert)) {
    if (split == 0) store_zeros<kTokens>(c, first_row, static_cast<int64_t>(n_tile) * kTileN);
    return;
  }
  char *const ring = shared_memory();
  const Range range = split_range(p.k_tiles, p.splits, split);
  const Loader<T, kKind, kTokens> loader(p, m_tile, n_tile, expert);
  WideRing<T, kKind, kTokens> tiles(p, loader, ring, range);
  WideBlock<T, kKind, kTokens, kScaleOnce> block(p);
  if constexpr (kScaleOnce) {
    const char *stage = nullptr;
    wgmma_hold(block.sum[0]);
    wgmma_hold(block.sum[1]);
    for (int tile = range.begin; tile < range.end; ++tile) {
      stage = tiles.next(tile);
      block.compute_once(stage, tile > range.begin);
    }
    block.scale_sums(stage);
  } else if (p.group_shift >= 3) {
    wide_loop<8>(tiles, block);
  } else if (p.group_shift == 2) {
    wide_loop<4>(tiles, block);
  } else {
    wide_loop<2>(tiles, block);
  }
  copy_wait(0);
  barrier();
  float *const sums = reinterpret_cast<float *>(ring);
  block.store_sums(sums);
  finish_block<T, kTokens>(p, loader, sums, expert);
}

}  // namespace vqp

#endif
