/* The W8A8 GEMM for large batches on sm_90a: persistent, warp-specialized, wgmma with both operands in shared memory.
 *
 *   CTA         3 warpgroups: two consumers compute 64 tokens x kChannels each, one thread of the third is the producer
 *   ring        4 or 6 stages of one K tile of 128 bytes, filled by TMA. The full barrier of a stage completes with the
 *               bytes of both operands, its empty barrier with an arrival of every warp that reads it, in all CTAs that
 *               it is loaded into: a multicast load writes the shared memory of the other CTA as well
 *   K tile      4 wgmmas of 32 columns. Without kPromote they accumulate in place, and the previous stage is released
 *               while they run. With kPromote (FP8), accumulate in FP32 after each K tile, times the block scales: one
 *               warpgroup adds while the wgmmas of the other run
 *   tile        the epilogue stores from registers while the loads of the next tile are already in flight; the
 *               warpgroups do not wait for each other
 *
 * Tokens are operand A, so that the accumulators of a thread are neighbouring channels of one row of y. Outputs are
 * computed as in w8a8_epilogue.h: INT8 results have the same bits on every path.
 */
#ifndef VQP_CUDA_W8A8_WIDE_KERNEL_H
#define VQP_CUDA_W8A8_WIDE_KERNEL_H

#include "w8a8_epilogue.h"
#include "w8a8_wide_schedule.h"
#include "wgmma_ss.h"

namespace vqp {

struct alignas(16) FourWords {
  uint32_t v[4];
};
template <class V>
struct alignas(8) Pair {
  V v[2];
};

/* The current stage of the ring, and the parity of its phase. */
template <int kStages>
struct PipelineState {
  int slot = 0, parity = 0;
  VQP_DEVICE void next() {
    if (++slot == kStages) slot = 0, parity ^= 1;
  }
};

/* Iterates over all K tiles of all output tiles of this cluster, in order. */
struct TileScheduler {
  const W8a8WideParams &p;
  const int units, tiles;
  int index, k_tile = 0;
  W8a8WideTile tile;

  VQP_DEVICE explicit TileScheduler(const W8a8WideParams &params)
      : p(params),
        units((p.m_tiles + p.cluster - 1) / p.cluster),
        tiles(units * p.n_tiles),
        index(cta_x() / p.cluster),
        tile(w8a8_wide_tile(index, units, p.n_tiles, p.cluster)) {}
  VQP_DEVICE bool exists() const { return index < tiles; }
  VQP_DEVICE void next_tile() {
    index += p.clusters;
    if (exists()) tile = w8a8_wide_tile(index, units, p.n_tiles, p.cluster);
  }
  VQP_DEVICE void next() {
    if (++k_tile < p.k_tiles) return;
    k_tile = 0;
    next_tile();
  }
  VQP_DEVICE int m_tile() const { return tile.unit * p.cluster + (p.cluster > 1 ? cluster_rank() : 0); }
};

template <int kChannels>
struct W8a8WideSmem {
  static constexpr int kStages = w8a8_wide_stages(kChannels);
  char *const memory;

  VQP_DEVICE char *stage(int slot) const { return memory + slot * w8a8_wide_stage_bytes(kChannels); }
  VQP_DEVICE char *scales(int slot) const {
    return memory + w8a8_wide_scales_offset(kChannels) + slot * kW8a8WideTokens * 4;
  }
  VQP_DEVICE Mbarrier *full_barrier(int slot) const {
    return reinterpret_cast<Mbarrier *>(memory + w8a8_wide_barriers_offset(kChannels)) + slot;
  }
  VQP_DEVICE Mbarrier *empty_barrier(int slot) const { return full_barrier(slot) + kStages; }
};

/* The producer thread. */
template <int kChannels, bool kPromote>
struct W8a8WideProducer {
  const W8a8WideParams &p;
  const W8a8WideSmem<kChannels> &ring;

  /* Bytes of the scales of x for the rows that the tile has, in whole pieces of 16 bytes. */
  VQP_DEVICE int scale_bytes(int m_tile) const {
    if (!kPromote || !p.call.grouped) return 0;
    const int64_t left = p.call.x_scale_stride - static_cast<int64_t>(m_tile) * kW8a8WideTokens;
    return left <= 0 ? 0 : 4 * static_cast<int>(left < kW8a8WideTokens ? left : kW8a8WideTokens);
  }
  /* Load the weights of a stage, after announcing all the bytes that the stage waits for. */
  VQP_DEVICE void load_weights(const TileScheduler &step, int slot) const {
    Mbarrier *const full_barrier = ring.full_barrier(slot);
    mbarrier_arrive_expect_tx(full_barrier, w8a8_wide_stage_bytes(kChannels) + scale_bytes(step.m_tile()));
    char *const to = ring.stage(slot) + kW8a8WideXBytes;
    const int column = step.k_tile * kRow, row = step.tile.n_tile * kChannels;
    if (p.cluster == 1) return tma_load(to, p.w, column, row, full_barrier);
    const int first = cluster_rank() * (kChannels / 2);
    tma_load_multicast(to + first * kRow, p.w, column, row + first, full_barrier, 3);
  }
  VQP_DEVICE void load_tokens(const TileScheduler &step, int slot) const {
    const int m_tile = step.m_tile(), bytes = scale_bytes(m_tile);
    tma_load(ring.stage(slot), p.x, step.k_tile * kRow, m_tile * kW8a8WideTokens, ring.full_barrier(slot));
    if (bytes)
      bulk_load(ring.scales(slot),
                 p.call.x_scales + step.k_tile * p.call.x_scale_stride + static_cast<int64_t>(m_tile) * kW8a8WideTokens,
                 bytes, ring.full_barrier(slot));
  }

  VQP_DEVICE void run() const {
    prefetch_tensor_map(p.x);
    prefetch_tensor_map(p.w);
    /* In a dependent launch the preceding kernel may still be writing x; the first weights need not wait for it. */
    int prefetched = 0;
    for (TileScheduler step(p); prefetched < ring.kStages && step.exists(); ++prefetched, step.next())
      load_weights(step, prefetched);
    if (p.dependent) griddep_wait(), griddep_launch_dependents();
    PipelineState<w8a8_wide_stages(kChannels)> place;
    place.parity = 1; /* the phase before the first: the stages start out empty */
    for (TileScheduler step(p); step.exists(); step.next(), place.next()) {
      if (prefetched) {
        --prefetched;
      } else {
        mbarrier_wait_cluster(ring.empty_barrier(place.slot), place.parity);
        load_weights(step, place.slot);
      }
      load_tokens(step, place.slot);
    }
  }
};

/* A consumer warpgroup: 64 tokens x kChannels. */
template <int kKind, int kChannels, bool kPromote>
struct W8a8WideConsumer {
  typedef typename Accumulator8<kKind>::Type Sum;
  static constexpr int kTiles = kChannels / 8;

  const W8a8WideParams &p;
  const W8a8WideSmem<kChannels> &ring;
  const int lane, row; /* this thread's first row of the CTA's tile; its other row is 8 further */
  char *const table;   /* this warp's copy of the channel parameters */
  PipelineState<w8a8_wide_stages(kChannels)> place;
  Sum accumulators[kTiles][4];

  VQP_DEVICE W8a8WideConsumer(const W8a8WideParams &params, const W8a8WideSmem<kChannels> &r)
      : p(params),
        ring(r),
        lane(thread_index() & 31),
        row(thread_index() / 32 * 16 + (lane >> 2)),
        table(r.memory + w8a8_wide_tables_offset(kChannels) + thread_index() / 32 * w8a8_wide_table_bytes(kChannels)) {
    VQP_UNROLL
    for (int t = 0; t < kTiles; ++t)
      VQP_UNROLL
      for (int i = 0; i < 4; ++i) accumulators[t][i] = 0;
    fence_accumulators(accumulators);
  }

  VQP_DEVICE void issue_wgmmas(Sum (&acc)[kTiles][4], bool accumulate) const {
    char *const stage = ring.stage(place.slot);
    const uint64_t x = tile_descriptor(shared_address(stage + thread_index() / 128 * 64 * kRow));
    const uint64_t w = tile_descriptor(shared_address(stage + kW8a8WideXBytes));
    syncwarp(); /* lanes may leave the wait for the full barrier one by one */
    wgmma_fence();
    VQP_UNROLL
    for (int s = 0; s < kRow / 32; ++s) wgmma_ss(acc, x + 2 * s, w + 2 * s, accumulate || s);
    wgmma_commit();
  }

  /* This warp has read the stage: arrive at the empty barrier of each CTA whose loads fill it. */
  VQP_DEVICE void release_stage(int slot) const {
    syncwarp();
    if (lane < p.cluster) mbarrier_arrive_cluster(ring.empty_barrier(slot), lane);
  }

  VQP_DEVICE void accumulate_tiles(int n_tile) {
    for (int k = 0; k < p.k_tiles; ++k, place.next()) {
      mbarrier_wait(ring.full_barrier(place.slot), place.parity);
      issue_wgmmas(accumulators, k > 0);
      if (k == 0) fill_table(n_tile);
      wgmma_wait<1>();
      if (k) release_stage(place.slot ? place.slot - 1 : ring.kStages - 1);
    }
    syncwarp(); /* only some lanes arrive at the empty barriers */
    wgmma_wait<0>();
    release_stage(place.slot ? place.slot - 1 : ring.kStages - 1);
    fence_accumulators(accumulators);
  }

  VQP_DEVICE void accumulate_tiles_fp32(int n_tile) {
    const bool grouped = p.call.grouped;
    const float *const w_scales = grouped ? p.call.w_scales + static_cast<int64_t>(n_tile) * p.k_tiles : nullptr;
    float next_scale = grouped ? load_global(w_scales) : 1;
    Sum tile_accumulators[kTiles][4];
    VQP_UNROLL
    for (int t = 0; t < kTiles; ++t)
      VQP_UNROLL
      for (int i = 0; i < 4; ++i) accumulators[t][i] = tile_accumulators[t][i] = 0;
    fence_accumulators(tile_accumulators);
    for (int k = 0; k < p.k_tiles; ++k, place.next()) {
      mbarrier_wait(ring.full_barrier(place.slot), place.parity);
      issue_wgmmas(tile_accumulators, false);
      if (k == 0) fill_table(n_tile);
      float scale[2] = {next_scale, next_scale};
      if (grouped) {
        const float *const scales = reinterpret_cast<const float *>(ring.scales(place.slot));
        if (k + 1 < p.k_tiles) next_scale = load_global(w_scales + k + 1);
        VQP_UNROLL
        for (int half = 0; half < 2; ++half)
          scale[half] = exists(half) ? load_shared<float>(scales + row + 8 * half) * scale[half] : 0.0f;
        syncwarp(); /* the lanes of rows that do not exist have skipped a load */
      }
      wgmma_wait<0>();
      fence_accumulators(tile_accumulators);
      release_stage(place.slot);
      VQP_UNROLL
      for (int t = 0; t < kTiles; ++t)
        VQP_UNROLL
        for (int i = 0; i < 4; ++i) accumulators[t][i] += tile_accumulators[t][i] * scale[i >> 1];
    }
  }

  int64_t first_row = 0; /* of the tile */
  VQP_DEVICE bool exists(int half) const { return first_row + row + 8 * half < p.call.m; }

  /* Copy the channel parameters of the epilogue into this warp's table while the first wgmmas of the tile run. */
  VQP_DEVICE void fill_table(int n_tile) const {
    const vqp_cuda_w8a8 &c = p.call;
    syncwarp(); /* the epilogue of the previous tile has read the table */
    for (int i = lane; i < kChannels; i += 32) {
      const int64_t channel = static_cast<int64_t>(n_tile) * kChannels + i;
      const bool inside = channel < c.n;
      store_shared(table + 4 * i, inside && !c.grouped ? load_global(c.w_scales + channel) : 1.0f);
      if (c.bias)
        store_shared(table + 4 * (kChannels + i), inside ? bias_of(c, channel) : 0.0f);
      if (kKind == kInt8 && c.x_zeros)
        store_shared(table + 4 * (2 * kChannels + i), inside ? load_global(c.w_sums + channel) : 0);
    }
    syncwarp(); /* lanes of channels that do not exist have skipped loads; the wait for wgmma needs the whole warp */
  }

  /* Transpose among the four lanes of a row, each of which holds 2 of every 8 channels: afterwards lane l holds the 8
   * channels of word l. */
  VQP_DEVICE void exchange(uint32_t (&words)[4]) const {
    VQP_UNROLL
    for (int bit = 1; bit <= 2; bit *= 2) {
      const bool upper = lane & bit;
      VQP_UNROLL
      for (int i = 0; i < 4; ++i) {
        if (i & bit) continue;
        const uint32_t given = as_bits(shfl_xor(as_float(upper ? words[i] : words[i | bit]), bit));
        if (upper)
          words[i] = given;
        else
          words[i | bit] = given;
      }
    }
  }

  /* Store 8 neighbouring outputs of a row, as far as they exist. */
  VQP_DEVICE void store_eight(const uint32_t (&words)[4], int64_t at_row, int64_t channel) const {
    const vqp_cuda_w8a8 &c = p.call;
    uint16_t *const y = static_cast<uint16_t *>(c.y) + at_row * c.n + channel;
    if (at_row >= c.m || channel >= c.n) return;
    if (p.vector)
      return store_global(reinterpret_cast<FourWords *>(y), FourWords{{words[0], words[1], words[2], words[3]}});
    VQP_UNROLL
    for (int j = 0; j < 8; ++j)
      if (channel + j < c.n) store_global(y + j, static_cast<uint16_t>(words[j / 2] >> 16 * (j & 1)));
  }

  /* The epilogue: accumulators to outputs, rounded as `finish` of w8a8_epilogue.h does. */
  VQP_DEVICE void store(int n_tile) const {
    const vqp_cuda_w8a8 &c = p.call;
    float scale[2] = {1, 1};
    int32_t zero[2] = {0, 0};
    VQP_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int64_t at = (first_row + row + 8 * half) * c.x_scale_stride;
      if (c.grouped || !exists(half)) continue;
      scale[half] = load_coherent(c.x_scales + at);
      if (c.x_zeros) zero[half] = load_coherent(c.x_zeros + at);
    }
    const bool zeros = kKind == kInt8 && c.x_zeros, biased = c.bias, half_output = c.y_dtype == VQP_CUDA_F16;
    VQP_UNROLL
    for (int t = 0; t < kTiles; t += 4) {
      uint32_t words[2][4];
      VQP_UNROLL
      for (int j = 0; j < 4; ++j) {
        const char *const at = table + 4 * (8 * (t + j) + c_col(lane, 0));
        const Pair<float> scales = load_shared<Pair<float>>(at);
        Pair<float> biases = {};
        Pair<int32_t> sums = {};
        if (biased) biases = load_shared<Pair<float>>(at + 4 * kChannels);
        if (zeros) sums = load_shared<Pair<int32_t>>(at + 8 * kChannels);
        float value[4];
        VQP_UNROLL
        for (int i = 0; i < 4; ++i) {
          Sum total = accumulators[t + j][i];
          if constexpr (kKind == kInt8)
            total = static_cast<int32_t>(word_of(total) - word_of(zero[i >> 1]) * word_of(sums.v[i & 1]));
          value[i] = multiply(static_cast<float>(total), multiply(scale[i >> 1], scales.v[i & 1]));
          if (biased) value[i] = add(value[i], biases.v[i & 1]);
        }
        VQP_UNROLL
        for (int half = 0; half < 2; ++half)
          words[half][j] = half_output ? to_pair<Half>(value[2 * half], value[2 * half + 1])
                                       : to_pair<BFloat16>(value[2 * half], value[2 * half + 1]);
      }
      VQP_UNROLL
      for (int half = 0; half < 2; ++half) {
        exchange(words[half]);
        store_eight(words[half], first_row + row + 8 * half,
                    static_cast<int64_t>(n_tile) * kChannels + 8 * (t + (lane & 3)));
      }
    }
  }

  VQP_DEVICE void run() {
    for (TileScheduler step(p); step.exists(); step.next_tile()) {
      first_row = static_cast<int64_t>(step.m_tile()) * kW8a8WideTokens;
      if constexpr (kPromote)
        accumulate_tiles_fp32(step.tile.n_tile);
      else
        accumulate_tiles(step.tile.n_tile);
      store(step.tile.n_tile);
    }
  }
};

template <int kKind, int kChannels, bool kPromote>
VQP_DEVICE void w8a8_wide_cta(const W8a8WideParams &p) {
  typedef W8a8WideSmem<kChannels> Ring;
  const Ring ring = {shared_memory()};
  const int warp = thread_index() / 32;
  if (thread_index() == 0) {
    for (int slot = 0; slot < Ring::kStages; ++slot) {
      mbarrier_init(ring.full_barrier(slot), 1);
      mbarrier_init(ring.empty_barrier(slot), kThreads / 32 * p.cluster);
    }
    fence_mbarrier_init();
  }
  /* No CTA may load into another or arrive at its barriers before these are initialized. Cluster barriers and the
   * warp-wide code that follows need converged warps. */
  syncwarp();
  if (p.cluster > 1)
    cluster_sync();
  else
    syncthreads();
  syncwarp();
  if (warp >= kThreads / 32) {
    reg_dealloc<40>();
    if (thread_index() == kThreads)
      W8a8WideProducer<kChannels, kPromote>{p, ring}.run();
    else if (p.dependent)
      griddep_wait(), griddep_launch_dependents();
  } else {
    reg_alloc<232>();
    if (p.dependent) griddep_wait(), griddep_launch_dependents(); /* the consumers read scales of x with plain loads */
    W8a8WideConsumer<kKind, kChannels, kPromote>(p, ring).run();
  }
  /* No CTA exits while the other may still load into it or arrive at its barriers. */
  syncwarp();
  if (p.cluster > 1) cluster_sync();
}

}  // namespace vqp

#endif
