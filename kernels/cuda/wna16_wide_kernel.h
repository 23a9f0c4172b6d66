/* The weight-only GEMM for large batches on sm_90a: two warpgroups, wgmma with the dequantized weight in registers.
 *
 *   CTA         128 channels x 128 or 256 tokens; warp w dequantizes row tile w, a warpgroup computes 64 channels
 *   K tile      8 steps of 16 columns; each step is two wgmmas, one per half of the tokens
 *   overlap     while the wgmmas of a step run, the fragments of the next step are dequantized into the other buffer,
 *               also across K tiles. At the end of a group, the accumulators of the first half are scaled while the
 *               last wgmma of the second half runs. Only while the second half is scaled do this warpgroup's tensor
 *               cores idle
 *
 * Accumulators are scaled in FP32 as in wna16_kernel.h, so weights are not rounded here either. kScaleOnce: one scale
 * per row, applied at the very end. Then no second set of accumulators is needed, and a CTA may have 256 tokens.
 *
 * ptxas serializes wgmmas, with a warning (C7510 and others, which tests/cuda/test_compile.py turns into an error),
 * where the accumulators of one half are read while the wgmmas of the other half cross the end of the loop. So each
 * group ends with all wgmmas complete.
 */
#ifndef VQP_CUDA_WNA16_WIDE_KERNEL_H
#define VQP_CUDA_WNA16_WIDE_KERNEL_H

#include "wgmma_rs.h"
#include "wna16_kernel.h"

namespace vqp {

template <class T, int kKind, int kTokens, bool kScaleOnce>
struct Wna16WideMainloop {
  static constexpr int kBits = bits_of(kKind);
  static constexpr int kTiles = kTokens / 16; /* mma tiles of 8 tokens per half */
  static constexpr uint32_t kMidpoint = 1u << (kBits - 1);
  static constexpr int kTileSteps = kTileK / kStep;

  const Wna16Params &p;
  const int lane, warp;
  float accumulators[2][kTiles][4];
  float group_accumulators[kScaleOnce ? 1 : 2][kScaleOnce ? 1 : kTiles][4]; /* of the group */
  uint32_t frag_a[2][4], zero_addend[2], packed[kBits];
  uint64_t column; /* descriptor of the prepared step */
  float scale[2]; /* of the group */

  VQP_DEVICE explicit Wna16WideMainloop(const Wna16Params &params)
      : p(params), lane(thread_index() & 31), warp(thread_index() >> 5) {
    VQP_UNROLL
    for (int half = 0; half < 2; ++half) {
      zero_addend[half] = zero_addend_of<T, kKind>(kMidpoint, half);
      scale[half] = 0;
      VQP_UNROLL
      for (int t = 0; t < kTiles; ++t)
        VQP_UNROLL
        for (int i = 0; i < 4; ++i) {
          accumulators[half][t][i] = 0;
          if (!kScaleOnce) group_accumulators[kScaleOnce ? 0 : half][kScaleOnce ? 0 : t][i] = 0;
        }
    }
    VQP_UNROLL
    for (int i = 0; i < 4; ++i) frag_a[0][i] = frag_a[1][i] = 0;
  }

  VQP_DEVICE int table_index(int step, int half) const {
    const int groups = groups_of_tile(p.group_shift);
    return (warp * groups + (step >> p.group_shift)) * kRowTile + (lane >> 2) + 8 * half;
  }
  VQP_DEVICE void load_zeros(const char *stage, int step) {
    VQP_UNROLL
    for (int half = 0; half < 2; ++half)
      zero_addend[half] =
          zero_addend_of<T, kKind>(load_shared<uint8_t>(stage + p.stage.zeros + table_index(step, half)), half);
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

  /* Add the scaled accumulators of the group to the totals, for one half of the tokens. */
  VQP_DEVICE void flush(int half) {
    VQP_UNROLL
    for (int t = 0; t < kTiles; ++t)
      VQP_UNROLL
      for (int i = 0; i < 4; ++i) accumulators[half][t][i] += scale[i >> 1] * group_accumulators[half][t][i];
  }

  /* Dequantize the A fragments of step `step` into their buffer. Returns the B descriptor of its first half of
   * tokens. */
  template <int kGroupSteps>
  VQP_DEVICE uint64_t prepare(const char *stage, int step) {
    if (step % kSteps == 0) load_words<kBits>(packed, stage + (warp * 2 + step / kSteps) * slab_bytes(kBits), lane);
    if (p.zero_bytes && step % kGroupSteps == 0) load_zeros(stage, step);
    uint32_t(&now)[4] = frag_a[step & 1];
    wgmma_wait<2>(now); /* the wgmmas of two steps ago have read it */
    VQP_UNROLL
    for (int reg = 0; reg < 4; ++reg) now[reg] = dequantize<T, kKind>(packed, step % kSteps, reg, zero_addend[reg & 1]);
    /* 16 columns are 32 bytes, and every 64 columns form a tile; descriptors count units of 16 bytes. */
    return tile_descriptor(shared_address(stage + p.stage.x)) + step % kSteps * 2 +
           step / kSteps * (kTokens * kSwizzleRow >> 4);
  }
  static constexpr int kSecondHalf = kTokens / 2 * kSwizzleRow >> 4;

  /* One K tile, whose first step is already prepared. Prepares the first step of the next tile if `kMore`, and
   * returns the next stage. kGroupSteps: steps per group, 8 where a group is at least as long as the tile. */
  template <int kGroupSteps, bool kMore, class Pipeline>
  VQP_DEVICE const char *compute(Pipeline &pipeline, const char *stage, int tile) {
    const char *next = stage;
    VQP_UNROLL
    for (int step = 0; step < kTileSteps; ++step) {
      wgmma_fence();
      wgmma_rs<T>(group_accumulators[0], frag_a[step & 1], column, step % kGroupSteps);
      wgmma_commit();
      wgmma_rs<T>(group_accumulators[1], frag_a[step & 1], column + kSecondHalf, step % kGroupSteps);
      wgmma_commit();
      const bool ends = step % kGroupSteps == kGroupSteps - 1;
      if (ends) load_scales(stage, step);
      if (step < kTileSteps - 1) {
        column = prepare<kGroupSteps>(stage, step + 1);
      } else if (kMore) {
        next = pipeline.next(tile + 1);
        column = prepare<kGroupSteps>(next, 0);
      }
      if (ends) {
        wgmma_wait<1>(group_accumulators[0]);
        flush(0);
        wgmma_wait<0>(group_accumulators[1]);
        flush(1);
      }
    }
    return next;
  }

  /* One K tile with kScaleOnce. `follows`: not the first K tile of the CTA. */
  VQP_DEVICE void compute_once(const char *stage, bool follows) {
    VQP_UNROLL
    for (int step = 0; step < kTileSteps; ++step) {
      const uint64_t b = prepare<kTileSteps>(stage, step);
      wgmma_fence();
      wgmma_rs<T>(accumulators[0], frag_a[step & 1], b, step || follows);
      wgmma_commit();
      wgmma_rs<T>(accumulators[1], frag_a[step & 1], b + kSecondHalf, step || follows);
      wgmma_commit();
    }
  }

  /* Apply the scales of kScaleOnce. `stage`: any K tile of the CTA. */
  VQP_DEVICE void scale_sums(const char *stage) {
    wgmma_wait<0>(accumulators[0]);
    wgmma_wait<0>(accumulators[1]);
    load_scales(stage, 0);
    VQP_UNROLL
    for (int half = 0; half < 2; ++half)
      VQP_UNROLL
      for (int t = 0; t < kTiles; ++t)
        VQP_UNROLL
        for (int i = 0; i < 4; ++i) accumulators[half][t][i] *= scale[i >> 1];
  }

  VQP_DEVICE void store_accumulators(float *tile) {
    VQP_UNROLL
    for (int half = 0; half < 2; ++half)
      VQP_UNROLL
      for (int t = 0; t < kTiles; ++t)
        VQP_UNROLL
        for (int i = 0; i < 4; ++i)
          store_shared(
              tile + (half * kTokens / 2 + 8 * t + c_col(lane, i)) * kSumStride + warp * kRowTile + c_row(lane, i),
              accumulators[half][t][i]);
    syncthreads();
  }
};

/* The ring of stages, refilled two K tiles behind their use. */
template <class T, int kKind, int kTokens>
struct Wna16WidePipeline {
  const Wna16Params &p;
  const Wna16Loader<T, kKind, kTokens> &loader;
  char *const ring;
  const Range range;
  static constexpr int kStages = wide_stages(kTokens);
  static constexpr int kAhead = kStages - 2; /* the stage that is refilled next was read two tiles ago */
  int slot = 0;

  VQP_DEVICE Wna16WidePipeline(const Wna16Params &params, const Wna16Loader<T, kKind, kTokens> &l, char *memory,
                               const Range &tiles)
      : p(params), loader(l), ring(memory), range(tiles) {
    for (int i = 0; i < kAhead; ++i) {
      if (range.begin + i < range.end) {
        loader.copy_weights(ring + i * p.stage.bytes, range.begin + i);
        loader.load_x(ring + i * p.stage.bytes, range.begin + i);
      }
      cp_async_commit();
    }
  }

  /* Wait for the stage of K tile `tile`. The barrier makes every thread's copies visible to all and to wgmma, and
   * ends all reads of the K tile two before. */
  VQP_DEVICE const char *next(int tile) {
    cp_async_wait<kAhead - 1>();
    fence_proxy_async();
    syncthreads();
    const int target = slot + kAhead < kStages ? slot + kAhead : slot + kAhead - kStages;
    if (tile + kAhead < range.end) {
      loader.copy_weights(ring + target * p.stage.bytes, tile + kAhead);
      loader.load_x(ring + target * p.stage.bytes, tile + kAhead);
    }
    cp_async_commit();
    syncwarp();
    const char *const stage = ring + slot * p.stage.bytes;
    slot = slot + 1 == kStages ? 0 : slot + 1;
    return stage;
  }
};

template <int kGroupSteps, class Pipeline, class Mainloop>
VQP_DEVICE void wna16_wide_loop(Pipeline &pipeline, Mainloop &mainloop) {
  const int last = pipeline.range.end - 1;
  const char *stage = pipeline.next(pipeline.range.begin);
  mainloop.column = mainloop.template prepare<kGroupSteps>(stage, 0);
  for (int tile = pipeline.range.begin; tile < last; ++tile)
    stage = mainloop.template compute<kGroupSteps, true>(pipeline, stage, tile);
  mainloop.template compute<kGroupSteps, false>(pipeline, stage, last);
}

template <class T, int kKind, int kTokens, bool kScaleOnce>
VQP_DEVICE void wna16_wide_cta(const Wna16Params &p) {
  const vqp_cuda_linear &c = p.call;
  const int split = cta_x(), m_tile = cta_y(), n_tile = cta_z();
  const int64_t first_row = static_cast<int64_t>(m_tile) * kTokens;
  if (kDependentLaunch && p.dependent) griddep_wait(), griddep_launch_dependents();
  if (c.rows && first_row >= load_coherent(c.padded_rows)) return; /* the same for all CTAs of a cluster */
  const int64_t expert = c.rows ? load_coherent(c.experts + m_tile) : 0;
  if (!holds_expert(c, expert)) {
    if (split == 0) store_zero_outputs<kTokens>(c, first_row, static_cast<int64_t>(n_tile) * kTileN);
    return;
  }
  char *const ring = shared_memory();
  const Range range = split_range(p.k_tiles, p.splits, split);
  const Wna16Loader<T, kKind, kTokens> loader(p, m_tile, n_tile, expert);
  Wna16WidePipeline<T, kKind, kTokens> tiles(p, loader, ring, range);
  Wna16WideMainloop<T, kKind, kTokens, kScaleOnce> mainloop(p);
  if constexpr (kScaleOnce) {
    const char *stage = nullptr;
    fence_accumulators(mainloop.accumulators[0]);
    fence_accumulators(mainloop.accumulators[1]);
    for (int tile = range.begin; tile < range.end; ++tile) {
      stage = tiles.next(tile);
      mainloop.compute_once(stage, tile > range.begin);
    }
    mainloop.scale_sums(stage);
  } else if (p.group_shift >= 3) {
    wna16_wide_loop<8>(tiles, mainloop);
  } else if (p.group_shift == 2) {
    wna16_wide_loop<4>(tiles, mainloop);
  } else {
    wna16_wide_loop<2>(tiles, mainloop);
  }
  cp_async_wait(0);
  syncthreads();
  float *const sums = reinterpret_cast<float *>(ring);
  mainloop.store_accumulators(sums);
  epilogue<T, kTokens>(p, loader, sums, expert);
}

}  // namespace vqp

#endif
