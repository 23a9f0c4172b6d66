/* The weight-only GEMM: dequantize into A fragments, mma.sync, scale the FP32 accumulators of each group.
 *
 * One kernel template serves decode and prefill; wna16_schedule.h describes the tiles. The accumulators of a group are
 * scaled in FP32, so weights are never rounded: a one-hot activation reads them exactly.
 */
#ifndef VQP_CUDA_WNA16_KERNEL_H
#define VQP_CUDA_WNA16_KERNEL_H

#include "dequant.h"
#include "wna16_loader.h"

namespace vqp {

/* This lane's packed words of a slab, plane after plane. */
template <int kBits>
VQP_DEVICE void load_words(uint32_t (&packed)[kBits], const char *slab, int lane) {
  VQP_UNROLL
  for (int base = 0; base < kBits; base += plane_width(kBits, base)) {
    const int width = plane_width(kBits, base);
    const char *at = slab + word_offset(width, base, lane, 0);
    if (width >= 4) {
      VQP_UNROLL
      for (int part = 0; part < width / 4; ++part) {
        const Words4 four = load_shared<Words4>(at + 512 * part);
        VQP_UNROLL
        for (int i = 0; i < 4; ++i) packed[base + 4 * part + i] = four.v[i];
      }
    } else if (width == 2) {
      const Words2 two = load_shared<Words2>(at);
      packed[base] = two.v[0], packed[base + 1] = two.v[1];
    } else {
      packed[base] = load_shared<uint32_t>(at);
    }
  }
}

template <class T, int kKind, int kTokens, bool kFloatZeros>
struct Wna16Mainloop {
  static constexpr int kBits = bits_of(kKind);
  static constexpr int kTiles = kTokens / 8;        /* mma tiles of 8 tokens */
  static constexpr int kRows = kRowTiles / kWarpsN; /* row tiles per warp */
  static constexpr uint32_t kMidpoint = 1u << (kBits - 1);

  const Wna16Params &p;
  const int lane, warp_n, warp_k;
  float accumulators[kRows][kTiles][4], group_accumulators[kRows][kTiles][4];
  float x_sum[kFloatZeros ? kTiles : 1][4]; /* sums of the activations of the group */
  uint32_t zero_addend[kRows][2];

  VQP_DEVICE explicit Wna16Mainloop(const Wna16Params &params)
      : p(params), lane(thread_index() & 31), warp_n((thread_index() >> 5) & (kWarpsN - 1)),
        warp_k(thread_index() >> 7) {
    VQP_UNROLL
    for (int r = 0; r < kRows; ++r) {
      zero_addend[r][0] = zero_addend_of<T, kKind>(kMidpoint, 0);
      zero_addend[r][1] = zero_addend_of<T, kKind>(kMidpoint, 1);
      VQP_UNROLL
      for (int t = 0; t < kTiles; ++t)
        VQP_UNROLL
        for (int i = 0; i < 4; ++i) accumulators[r][t][i] = group_accumulators[r][t][i] = 0;
    }
    VQP_UNROLL
    for (int t = 0; t < (kFloatZeros ? kTiles : 1); ++t)
      VQP_UNROLL
      for (int i = 0; i < 4; ++i) x_sum[t][i] = 0;
  }

  /* Index of row lane / 4 + 8 half of row tile `r` in the tables of the stage, for the group of step `step`. */
  VQP_DEVICE int table_index(int r, int step, int half) const {
    const int group = (warp_k * kSteps + step) >> p.group_shift; /* within the K tile: 0 for groups of 128 and more */
    return ((warp_n * kRows + r) * groups_of_tile(p.group_shift) + group) * kRowTile + (lane >> 2) + 8 * half;
  }

  VQP_DEVICE void load_zeros(const char *stage, int step) {
    VQP_UNROLL
    for (int r = 0; r < kRows; ++r)
      VQP_UNROLL
      for (int half = 0; half < 2; ++half) {
        const uint32_t zero = load_shared<uint8_t>(stage + p.stage.zeros + table_index(r, step, half));
        zero_addend[r][half] = zero_addend_of<T, kKind>(zero, half);
      }
  }

  /* At the end of a group (or of the slab), add its scaled accumulators to the totals. */
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
          const float value = kFloatZeros ? group_accumulators[r][t][i] - zero[i >> 1] * x_sum[t][i]
                                          : group_accumulators[r][t][i];
          accumulators[r][t][i] += scale[i >> 1] * value;
          group_accumulators[r][t][i] = 0;
        }
    }
    if (kFloatZeros)
      VQP_UNROLL
      for (int t = 0; t < kTiles; ++t)
        VQP_UNROLL
        for (int i = 0; i < 4; ++i) x_sum[t][i] = 0;
  }

  /* B fragments of step `step`: tiles of 8 tokens are the columns, read from rows of activations. */
  VQP_DEVICE void load_frag_b(uint32_t (&frag_b)[kTiles][2], const char *stage, int step) const {
    const int chunk = warp_k * (kSlab / 8) + 2 * step;
    if (kTiles == 1) ldmatrix(frag_b[0], stage + p.stage.x + x_offset(lane & 7, chunk + ((lane >> 3) & 1)));
    VQP_UNROLL
    for (int t = 0; t < kTiles / 2 * 2; t += 2) {
      uint32_t two[4];
      ldmatrix(two, stage + p.stage.x + x_offset(8 * t + (lane & 7) + 8 * (lane >> 4), chunk + ((lane >> 3) & 1)));
      frag_b[t][0] = two[0], frag_b[t][1] = two[1];
      frag_b[t + 1][0] = two[2], frag_b[t + 1][1] = two[3];
    }
  }

  /* The warp's slab of a stage. `kFine`: groups of 16 or 32, so a slab contains several. */
  template <bool kFine>
  VQP_DEVICE void compute(const char *stage) {
    uint32_t packed[kRows][kBits];
    VQP_UNROLL
    for (int r = 0; r < kRows; ++r)
      load_words<kBits>(packed[r], stage + ((warp_n * kRows + r) * 2 + warp_k) * slab_bytes(kBits), lane);
    VQP_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      if (!kFloatZeros && p.zero_bytes && (step == 0 || (kFine && (p.flush_mask >> (step - 1) & 1))))
        load_zeros(stage, step);
      uint32_t frag_b[kTiles][2];
      load_frag_b(frag_b, stage, step);
      VQP_UNROLL
      for (int r = 0; r < kRows; ++r) {
        uint32_t frag_a[4];
        VQP_UNROLL
        for (int reg = 0; reg < 4; ++reg)
          frag_a[reg] = dequantize<T, kKind>(packed[r], step, reg, zero_addend[r][reg & 1]);
        VQP_UNROLL
        for (int t = 0; t < kTiles; ++t) mma<T>(group_accumulators[r][t], frag_a, frag_b[t]);
      }
      if (kFloatZeros) {
        const uint32_t ones[4] = {T::kOne, T::kOne, T::kOne, T::kOne};
        VQP_UNROLL
        for (int t = 0; t < kTiles; ++t) mma<T>(x_sum[t], ones, frag_b[t]);
      }
      if (step == kSteps - 1 || (kFine && (p.flush_mask >> step & 1))) flush(stage, step);
    }
  }

  /* Store the accumulators of both halves of K to the CTA's tile [token][channel]; the second half adds to the
   * first. */
  VQP_DEVICE void store_accumulators(float *tile) {
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
              store_shared(at, turn ? load_shared<float>(at) + accumulators[r][t][i] : accumulators[r][t][i]);
            }
      syncthreads();
    }
  }
};

/* Store one output: add the bias, multiply by the factor of the row, round. */
template <class T>
VQP_DEVICE void store_output(const vqp_cuda_linear &c, int64_t pair, int64_t channel, int64_t expert, float value) {
  if (c.bias)
    value += widen(
        c.bias_dtype, expert * c.n + channel,
        [&](int64_t i) { return load_global(static_cast<const uint16_t *>(c.bias) + i); },
        [&](int64_t i) { return load_global(static_cast<const float *>(c.bias) + i); });
  if (c.row_scales) value *= load_coherent(c.row_scales + pair);
  store_global(static_cast<uint16_t *>(c.y) + pair * c.n + channel, static_cast<uint16_t>(to_pair<T>(value, 0)));
}

/* Zero the CTA's outputs: the weight does not hold the expert of the tile. */
template <int kTokens>
VQP_DEVICE void store_zero_outputs(const vqp_cuda_linear &c, int64_t first_row, int64_t first_channel) {
  for (int i = thread_index(); i < kTokens * kTileN; i += kThreads) {
    const int64_t pair = pair_of(c, first_row + i / kTileN, [](const int32_t *at) { return load_coherent(at); });
    const int64_t channel = first_channel + i % kTileN;
    if (pair >= 0 && channel < c.n) store_global(static_cast<uint16_t *>(c.y) + pair * c.n + channel, uint16_t(0));
  }
}

/* The sum of the float at `at` over the CTAs of a cluster, in the order of their ranks. All loads are issued before the
 * first value is used, so their latencies overlap. */
VQP_DEVICE float cluster_sum(const float *at, int splits) {
  float of[kMaxSplits];
  VQP_UNROLL
  for (int rank = 0; rank < kMaxSplits; ++rank) of[rank] = rank < splits ? load_shared_cluster(at, rank) : 0;
  float sum = of[0];
  VQP_UNROLL
  for (int rank = 1; rank < kMaxSplits; ++rank) sum = rank < splits ? sum + of[rank] : sum;
  return sum;
}

/* From the CTA's accumulators in shared memory to its outputs, or to the workspace of split-K. */
template <class T, int kTokens, class Source>
VQP_DEVICE void epilogue(const Wna16Params &p, const Source &loader, const float *sums, int64_t expert) {
  const vqp_cuda_linear &c = p.call;
  const int split = cta_x(), n_tile = cta_z();
  const int64_t first_row = static_cast<int64_t>(cta_y()) * kTokens;
  /* With a cluster, each CTA finishes its share of the tile: the sum over the CTAs, in the order of their ranks. */
  int first = thread_index(), stride = kThreads;
  if (p.clustered) cluster_sync(), first += split * kThreads, stride *= p.splits;
  for (int i = first; i < kTokens * kTileN; i += stride) {
    const int token = i / kTileN;
    const int64_t channel = static_cast<int64_t>(n_tile) * kTileN + i % kTileN;
    const int64_t pair = loader.source(token);
    if (channel >= c.n || pair < 0) continue;
    const float *const at = sums + token * kSumStride + i % kTileN;
    float value = load_shared<float>(at);
    if (p.partial) {
      const int64_t rows = static_cast<int64_t>(grid_dim_y()) * kTokens;
      store_global(p.partial + (split * rows + first_row + token) * c.n + channel, value);
      continue;
    }
    if (p.clustered) value = cluster_sum(at, p.splits);
    store_output<T>(c, pair, channel, expert, value);
  }
  if (p.clustered) cluster_sync(); /* no CTA exits while others read its accumulators */
}

template <class T, int kKind, int kTokens, bool kFloatZeros>
VQP_DEVICE void wna16_cta(const Wna16Params &p) {
  const vqp_cuda_linear &c = p.call;
  const int split = cta_x(), m_tile = cta_y(), n_tile = cta_z();
  const int64_t first_row = static_cast<int64_t>(m_tile) * kTokens;
  /* Every thread waits before it exits; otherwise this kernel could end before the preceding one. The next kernel may
   * start once all CTAs are here, so at most one kernel starts early, on the SMs that this one leaves idle. */
  const bool early = kDependentLaunch && p.dependent && !c.rows;
  if (kDependentLaunch && p.dependent && c.rows) griddep_wait(), griddep_launch_dependents();
  if (c.rows && first_row >= load_coherent(c.padded_rows)) return; /* the same for all CTAs of a cluster */
  const int64_t expert = c.rows ? load_coherent(c.experts + m_tile) : 0;
  if (!holds_expert(c, expert)) {
    if (split == 0) store_zero_outputs<kTokens>(c, first_row, static_cast<int64_t>(n_tile) * kTileN);
    return;
  }

  char *const ring = shared_memory();
  const Range range = split_range(p.k_tiles, p.splits, split);
  Wna16Loader<T, kKind, kTokens> loader(p, m_tile, n_tile, expert);
  Wna16Mainloop<T, kKind, kTokens, kFloatZeros> mainloop(p);

  for (int i = 0; i < p.stages - 1; ++i) {
    char *const stage = ring + i * p.stage.bytes;
    if (range.begin + i < range.end) {
      loader.copy_weights(stage, range.begin + i);
      if (!early) loader.load_x(stage, range.begin + i);
    }
    cp_async_commit();
  }
  if (early) {
    griddep_wait();
    griddep_launch_dependents();
    loader.load_x_directly(ring, range);
  }
  int slot = 0;
  for (int tile = range.begin; tile < range.end; ++tile) {
    /* There is one cp.async group per K tile, so with at most stages - 2 groups in flight this tile has arrived. The
     * barrier makes every thread's copies visible to all, and ends all reads of the stage that is refilled next. */
    cp_async_wait(p.stages - 2);
    syncthreads();
    const int next = tile + p.stages - 1;
    char *const target = ring + (slot == 0 ? p.stages - 1 : slot - 1) * p.stage.bytes;
    if (next < range.end) {
      loader.copy_weights(target, next);
      loader.load_x(target, next);
    }
    cp_async_commit();
    syncwarp();
    if (p.flush_mask == 0x8)
      mainloop.template compute<false>(ring + slot * p.stage.bytes);
    else
      mainloop.template compute<true>(ring + slot * p.stage.bytes);
    slot = slot + 1 == p.stages ? 0 : slot + 1;
  }
  cp_async_wait(0);
  syncthreads();
  float *const sums = reinterpret_cast<float *>(ring);
  mainloop.store_accumulators(sums);

  epilogue<T, kTokens>(p, loader, sums, expert);
}

/* The split-K reduction without clusters: the same sum in the same order. Each thread handles one channel. */
template <class T>
VQP_DEVICE void wna16_reduce_cta(const Wna16Params &p, int64_t rows, int tokens) {
  const vqp_cuda_linear &c = p.call;
  const int64_t channel = static_cast<int64_t>(cta_x()) * kThreads + thread_index();
  if (channel >= c.n) return;
  const int64_t used = c.rows ? load_global(c.padded_rows) : c.m;
  for (int64_t row = cta_y(); row < used; row += grid_dim_y()) {
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
