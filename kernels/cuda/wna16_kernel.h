/* The weight-only matrix product: dequantize into A fragments, mma.sync, scale the FP32 sums of each group.
 *
 * One kernel template serves decode and prefill; see schedule.h for the shape of a block. The sums of a
 * group are scaled in FP32, so weights are never rounded: what a one-hot activation reads is exact.
 */
#ifndef VQP_CUDA_WNA16_KERNEL_H
#define VQP_CUDA_WNA16_KERNEL_H

#include "dequant.h"
#include "loader.h"

namespace vqp {

/* This lane's words of a slab, planes in order. */
template <int kBits>
VQP_DEVICE void load_words(uint32_t (&words)[kBits], const char *slab, int lane) {
  VQP_UNROLL
  for (int base = 0; base < kBits; base += plane_width(kBits, base)) {
    const int width = plane_width(kBits, base);
    const char *at = slab + word_offset(width, base, lane, 0);
    if (width >= 4) {
      VQP_UNROLL
      for (int part = 0; part < width / 4; ++part) {
        const Words4 four = load_shared<Words4>(at + 512 * part);
        VQP_UNROLL
        for (int i = 0; i < 4; ++i) words[base + 4 * part + i] = four.v[i];
      }
    } else if (width == 2) {
      const Words2 two = load_shared<Words2>(at);
      words[base] = two.v[0], words[base + 1] = two.v[1];
    } else {
      words[base] = load_shared<uint32_t>(at);
    }
  }
}

template <class T, int kKind, int kTokens, bool kFloatZeros>
struct Block {
  static constexpr int kBits = bits_of(kKind);
  static constexpr int kTiles = kTokens / 8;                 /* mma tiles of 8 tokens */
  static constexpr int kRows = kRowTiles / kWarpsN;          /* row tiles of a warp */
  static constexpr uint32_t kMiddle = 1u << (kBits - 1);

  const Params &p;
  const int lane, warp_n, warp_k;
  float sum[kRows][kTiles][4], part[kRows][kTiles][4];
  float x_sum[kFloatZeros ? kTiles : 1][4]; /* of the activations of a group */
  uint32_t constant[kRows][2];

  VQP_DEVICE explicit Block(const Params &params)
      : p(params), lane(thread_index() & 31), warp_n((thread_index() >> 5) & (kWarpsN - 1)),
        warp_k(thread_index() >> 7) {
    VQP_UNROLL
    for (int r = 0; r < kRows; ++r) {
      constant[r][0] = zero_constant<T, kKind>(kMiddle, 0);
      constant[r][1] = zero_constant<T, kKind>(kMiddle, 1);
      VQP_UNROLL
      for (int t = 0; t < kTiles; ++t)
        VQP_UNROLL
        for (int i = 0; i < 4; ++i) sum[r][t][i] = part[r][t][i] = 0;
    }
    VQP_UNROLL
    for (int t = 0; t < (kFloatZeros ? kTiles : 1); ++t)
      VQP_UNROLL
      for (int i = 0; i < 4; ++i) x_sum[t][i] = 0;
  }

  /* Element of row lane / 4 + 8 half of row tile `r`, for the group that step `step` of the warp's slab is in. */
  VQP_DEVICE int table_index(int r, int step, int half) const {
    const int group = (warp_k * kSteps + step) >> p.group_shift; /* of the K tile: 0 for groups of 128 and more */
    return ((warp_n * kRows + r) * groups_of_tile(p.group_shift) + group) * kRowTile + (lane >> 2) + 8 * half;
  }

  VQP_DEVICE void load_zeros(const char *stage, int step) {
    VQP_UNROLL
    for (int r = 0; r < kRows; ++r)
      VQP_UNROLL
      for (int half = 0; half < 2; ++half) {
        const uint32_t zero = load_shared<uint8_t>(stage + p.stage.zeros + table_index(r, step, half));
        constant[r][half] = zero_constant<T, kKind>(zero, half);
      }
  }

  /* End of a group (or of the slab): scale its sums into the total. */
  VQP_DEVICE void flush(const char *stage, int step) {
    const char *scales = stage + p.stage.scales;
    VQP_UNROLL
    for (int r = 0; r < kRows; ++r) {
      float scale[2], zero[2] = {0, 0};
      VQP_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int at = table_index(r, step, half);
        scale[half] = widen(
            p.call.scale_dtype, at, [&](int64_t i) { return load_shared<uint16_t>(scales + 2 * i); },
            [&](int64_t i) { return load_shared<float>(scales + 4 * i); });
        if (kFloatZeros) zero[half] = load_shared<float>(stage + p.stage.zeros + 4 * at);
      }
      VQP_UNROLL
      for (int t = 0; t < kTiles; ++t)
        VQP_UNROLL
        for (int i = 0; i < 4; ++i) {
          const float value = kFloatZeros ? part[r][t][i] - zero[i >> 1] * x_sum[t][i] : part[r][t][i];
          sum[r][t][i] += scale[i >> 1] * value;
          part[r][t][i] = 0;
        }
    }
    if (kFloatZeros)
      VQP_UNROLL
      for (int t = 0; t < kTiles; ++t)
        VQP_UNROLL
        for (int i = 0; i < 4; ++i) x_sum[t][i] = 0;
  }

  /* Fragments of B for step `step`: tiles of 8 tokens as the columns, from rows of activations. */
  VQP_DEVICE void load_b(uint32_t (&b)[kTiles][2], const char *stage, int step) const {
    const int chunk = warp_k * (kSlab / 8) + 2 * step;
    if (kTiles == 1) load_matrices(b[0], stage + p.stage.x + x_offset(lane & 7, chunk + ((lane >> 3) & 1)));
    VQP_UNROLL
    for (int t = 0; t < kTiles / 2 * 2; t += 2) {
      uint32_t two[4];
      load_matrices(two, stage + p.stage.x + x_offset(8 * t + (lane & 7) + 8 * (lane >> 4), chunk + ((lane >> 3) & 1)));
      b[t][0] = two[0], b[t][1] = two[1];
      b[t + 1][0] = two[2], b[t + 1][1] = two[3];
    }
  }

  /* The warp's slab of a stage. `kFine`: groups of 16 or 32, so that a slab holds several. */
  template <bool kFine>
  VQP_DEVICE void compute(const char *stage) {
    uint32_t words[kRows][kBits];
    VQP_UNROLL
    for (int r = 0; r < kRows; ++r)
      load_words<kBits>(words[r], stage + ((warp_n * kRows + r) * 2 + warp_k) * slab_bytes(kBits), lane);
    VQP_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      if (!kFloatZeros && p.zero_bytes && (step == 0 || (kFine && (p.flush_mask >> (step - 1) & 1))))
        load_zeros(stage, step);
      uint32_t b[kTiles][2];
      load_b(b, stage, step);
      VQP_UNROLL
      for (int r = 0; r < kRows; ++r) {
        uint32_t a[4];
        VQP_UNROLL
        for (int reg = 0; reg < 4; ++reg) a[reg] = dequantize<T, kKind>(words[r], step, reg, constant[r][reg & 1]);
        VQP_UNROLL
        for (int t = 0; t < kTiles; ++t) mma<T>(part[r][t], a, b[t]);
      }
      if (kFloatZeros) {
        const uint32_t ones[4] = {T::kOne, T::kOne, T::kOne, T::kOne};
        VQP_UNROLL
        for (int t = 0; t < kTiles; ++t) mma<T>(x_sum[t], ones, b[t]);
      }
      if (step == kSteps - 1 || (kFine && (p.flush_mask >> step & 1))) flush(stage, step);
    }
  }

  /* Both halves of K into the block's sum tile [token][channel]; the second adds to the first. */
  VQP_DEVICE void store_sums(float *tile) {
    for (int turn = 0; turn < kWarpsK; ++turn) {
      if (warp_k == turn)
        VQP_UNROLL
        for (int r = 0; r < kRows; ++r)
          VQP_UNROLL
          for (int t = 0; t < kTiles; ++t)
            VQP_UNROLL
            for (int i = 0; i < 4; ++i) {
              const int channel = (warp_n * kRows + r) * kRowTile + c_row(lane, i);
              float *at = tile + (8 * t + c_col(lane, i)) * kSumStride + channel;
              store_shared(at, turn ? load_shared<float>(at) + sum[r][t][i] : sum[r][t][i]);
            }
      barrier();
    }
  }
};

/* One output: add the bias, apply the row's factor, round, store. */
template <class T>
VQP_DEVICE void store_output(const vqp_cuda_linear &c, int64_t pair, int64_t channel, int64_t expert, float value) {
  if (c.bias)
    value += widen(
        c.bias_dtype, expert * c.n + channel,
        [&](int64_t i) { return load_global(static_cast<const uint16_t *>(c.bias) + i); },
        [&](int64_t i) { return load_global(static_cast<const float *>(c.bias) + i); });
  if (c.row_scales) value *= load_written(c.row_scales + pair);
  store_global(static_cast<uint16_t *>(c.y) + pair * c.n + channel, static_cast<uint16_t>(to_pair<T>(value, 0)));
}

/* The block's outputs where the weight does not hold the tile's expert. */
template <int kTokens>
VQP_DEVICE void store_zeros(const vqp_cuda_linear &c, int64_t first_row, int64_t first_channel) {
  for (int i = thread_index(); i < kTokens * kTileN; i += kThreads) {
    const int64_t pair = pair_of(c, first_row + i / kTileN, [](const int32_t *at) { return load_written(at); });
    const int64_t channel = first_channel + i % kTileN;
    if (pair >= 0 && channel < c.n) store_global(static_cast<uint16_t *>(c.y) + pair * c.n + channel, uint16_t(0));
  }
}

/* The sum over the blocks of a cluster of the float at `at`, in their order. All are asked for before the first is
 * used: one trip to the other multiprocessors, not one for each. */
VQP_DEVICE float sum_of_cluster(const float *at, int splits) {
  float of[kMaxSplits];
  VQP_UNROLL
  for (int rank = 0; rank < kMaxSplits; ++rank) of[rank] = rank < splits ? load_cluster(at, rank) : 0;
  float sum = of[0];
  VQP_UNROLL
  for (int rank = 1; rank < kMaxSplits; ++rank) sum = rank < splits ? sum + of[rank] : sum;
  return sum;
}

/* From the block's sum tile to its outputs, or to the workspace. */
template <class T, int kTokens, class Source>
VQP_DEVICE void finish_block(const Params &p, const Source &loader, const float *sums, int64_t expert) {
  const vqp_cuda_linear &c = p.call;
  const int split = block_x(), n_tile = block_z();
  const int64_t first_row = static_cast<int64_t>(block_y()) * kTokens;
  /* With a cluster, block `split` of it finishes its share of the tile: the sum over blocks, in their order. */
  int first = thread_index(), stride = kThreads;
  if (p.clustered) cluster_barrier(), first += split * kThreads, stride *= p.splits;
  for (int i = first; i < kTokens * kTileN; i += stride) {
    const int token = i / kTileN;
    const int64_t channel = static_cast<int64_t>(n_tile) * kTileN + i % kTileN;
    const int64_t pair = loader.source(token);
    if (channel >= c.n || pair < 0) continue;
    const float *const at = sums + token * kSumStride + i % kTileN;
    float value = load_shared<float>(at);
    if (p.partial) {
      const int64_t rows = static_cast<int64_t>(grid_y()) * kTokens;
      store_global(p.partial + (split * rows + first_row + token) * c.n + channel, value);
      continue;
    }
    if (p.clustered) value = sum_of_cluster(at, p.splits);
    store_output<T>(c, pair, channel, expert, value);
  }
  if (p.clustered) cluster_barrier(); /* a block's sums live until all have read them */
}

template <class T, int kKind, int kTokens, bool kFloatZeros>
VQP_DEVICE void wna16_block(const Params &p) {
  const vqp_cuda_linear &c = p.call;
  const int split = block_x(), m_tile = block_y(), n_tile = block_z();
  const int64_t first_row = static_cast<int64_t>(m_tile) * kTokens;
  /* Every thread waits before it ends, or this kernel could end before the one ahead. The next one may start once
   * all blocks are here: so at most one kernel runs ahead, and fills what this one leaves idle. */
  const bool early = kDependentLaunch && p.dependent && !c.rows;
  if (kDependentLaunch && p.dependent && c.rows) dependency_wait(), dependency_launch();
  if (c.rows && first_row >= load_written(c.padded_rows)) return; /* all blocks of a cluster agree */
  const int64_t expert = c.rows ? load_written(c.experts + m_tile) : 0;
  if (!holds_expert(c, expert)) {
    if (split == 0) store_zeros<kTokens>(c, first_row, static_cast<int64_t>(n_tile) * kTileN);
    return;
  }

  char *const ring = shared_memory();
  const Range range = split_range(p.k_tiles, p.splits, split);
  Loader<T, kKind, kTokens> loader(p, m_tile, n_tile, expert);
  Block<T, kKind, kTokens, kFloatZeros> block(p);

  for (int i = 0; i < p.stages - 1; ++i) {
    char *const stage = ring + i * p.stage.bytes;
    if (range.begin + i < range.end) {
      loader.copy_weights(stage, range.begin + i);
      if (!early) loader.load_x(stage, range.begin + i);
    }
    copy_commit();
  }
  if (early) {
    dependency_wait();
    dependency_launch();
    loader.load_x_now(ring, range);
  }
  int slot = 0;
  for (int tile = range.begin; tile < range.end; ++tile) {
    /* One group of copies a tile, so all but the last stages - 2 groups hold up to this tile's. The barrier
     * shows every thread's copies to all, and ends all reads of the slot that is filled next. */
    copy_wait(p.stages - 2);
    barrier();
    const int next = tile + p.stages - 1;
    char *const target = ring + (slot == 0 ? p.stages - 1 : slot - 1) * p.stage.bytes;
    if (next < range.end) {
      loader.copy_weights(target, next);
      loader.load_x(target, next);
    }
    copy_commit();
    converge();
    if (p.flush_mask == 0x8)
      block.template compute<false>(ring + slot * p.stage.bytes);
    else
      block.template compute<true>(ring + slot * p.stage.bytes);
    slot = slot + 1 == p.stages ? 0 : slot + 1;
  }
  copy_wait(0);
  barrier();
  float *const sums = reinterpret_cast<float *>(ring);
  block.store_sums(sums);

  finish_block<T, kTokens>(p, loader, sums, expert);
}

/* Second pass of split-K without clusters: the same sum in the same order. One thread a channel. */
template <class T>
VQP_DEVICE void reduce_block(const Params &p, int64_t rows, int tokens) {
  const vqp_cuda_linear &c = p.call;
  const int64_t channel = static_cast<int64_t>(block_x()) * kThreads + thread_index();
  if (channel >= c.n) return;
  const int64_t used = c.rows ? load_global(c.padded_rows) : c.m;
  for (int64_t row = block_y(); row < used; row += grid_y()) {
    const int64_t pair = pair_of(c, row, [](const int32_t *at) { return load_global(at); });
    const int64_t expert = c.rows ? load_global(c.experts + row / tokens) : 0;
    if (pair < 0 || !holds_expert(c, expert)) continue;
    float value = load_global(p.partial + row * c.n + channel);
    for (int split = 1; split < p.splits; ++split)
      value += load_global(p.partial + (split * rows + row) * c.n + channel);
    store_output<T>(c, pair, channel, expert, value);
  }
}

}  // namespace vqp

#endif
