/* The product of 8-bit codes for large batches on sm_90a: wgmma with both operands in shared memory.
 *
 *   block       3 warpgroups: two multiply 64 tokens x kChannels each, one thread of the third loads
 *   ring        4 or 6 stages, a K tile of 128 bytes each, filled by tensor copies. `full` of a stage ends with the
 *               bytes of both operands, `empty` with an arrival of every warp that reads it, in all blocks that it is
 *               copied to: a multicast copy writes the other block's memory as well
 *   K tile      4 products of 32 columns. Without kPromote they add to the sums, and the tile before is released while
 *               they run. With it (FP8), they are taken over in FP32, times the block scales: one warpgroup adds while
 *               the other's products run
 *   tile        its outputs leave from registers while the next tile's stages are already on their way; the warpgroups
 *               do not wait for each other
 *
 * Tokens are operand A, so that a thread's sums are neighbouring channels of one row of y. The arithmetic of an output is
 * that of w8a8_epilogue.h: INT8 results are those of every other path, bit for bit.
 */
#ifndef VQP_CUDA_W8A8_WIDE_KERNEL_H
#define VQP_CUDA_W8A8_WIDE_KERNEL_H

#include "w8a8_epilogue.h"
#include "w8a8_wide_schedule.h"
#include "wgmma8.h"

namespace vqp {

struct alignas(16) FourWords {
  uint32_t v[4];
};
template <class V>
struct alignas(8) Pair {
  V v[2];
};

/* A place in the ring and how often it was passed. */
template <int kStages>
struct RingPlace {
  int slot = 0, parity = 0;
  VQP_DEVICE void next() {
    if (++slot == kStages) slot = 0, parity ^= 1;
  }
};

/* All K tiles of all tiles of this cluster, in order. */
struct Wide8Steps {
  const Wide8Params &p;
  const int units, tiles;
  int index, k_tile = 0;
  Wide8Tile tile;

  VQP_DEVICE explicit Wide8Steps(const Wide8Params &params)
      : p(params),
        units((p.m_tiles + p.cluster - 1) / p.cluster),
        tiles(units * p.n_tiles),
        index(block_x() / p.cluster),
        tile(wide8_tile(index, units, p.n_tiles, p.cluster)) {}
  VQP_DEVICE bool exists() const { return index < tiles; }
  VQP_DEVICE void next_tile() {
    index += p.clusters;
    if (exists()) tile = wide8_tile(index, units, p.n_tiles, p.cluster);
  }
  VQP_DEVICE void next() {
    if (++k_tile < p.k_tiles) return;
    k_tile = 0;
    next_tile();
  }
  VQP_DEVICE int m_tile() const { return tile.unit * p.cluster + (p.cluster > 1 ? cluster_rank() : 0); }
};

template <int kChannels>
struct Wide8Ring {
  static constexpr int kStages = wide8_stages(kChannels);
  char *const memory;

  VQP_DEVICE char *stage(int slot) const { return memory + slot * wide8_stage(kChannels); }
  VQP_DEVICE char *scales(int slot) const { return memory + wide8_scales_at(kChannels) + slot * kWide8Tokens * 4; }
  VQP_DEVICE Mbarrier *full(int slot) const {
    return reinterpret_cast<Mbarrier *>(memory + wide8_barriers_at(kChannels)) + slot;
  }
  VQP_DEVICE Mbarrier *empty(int slot) const { return full(slot) + kStages; }
};

/* The thread that loads. */
template <int kChannels, bool kPromote>
struct Wide8Producer {
  const Wide8Params &p;
  const Wide8Ring<kChannels> &ring;

  /* Scales of x of the tile's rows that there are, in whole pieces of 16 bytes. */
  VQP_DEVICE int scale_bytes(int m_tile) const {
    if (!kPromote || !p.call.grouped) return 0;
    const int64_t left = p.call.x_scale_stride - static_cast<int64_t>(m_tile) * kWide8Tokens;
    return left <= 0 ? 0 : 4 * static_cast<int>(left < kWide8Tokens ? left : kWide8Tokens);
  }
  /* Weights, and what the stage waits for. */
  VQP_DEVICE void load_weights(const Wide8Steps &step, int slot) const {
    Mbarrier *const full = ring.full(slot);
    mbarrier_expect(full, wide8_stage(kChannels) + scale_bytes(step.m_tile()));
    char *const to = ring.stage(slot) + kWide8X;
    const int column = step.k_tile * kRow, row = step.tile.n_tile * kChannels;
    if (p.cluster == 1) return load_box(to, p.w, column, row, full);
    const int first = cluster_rank() * (kChannels / 2);
    load_box_shared(to + first * kRow, p.w, column, row + first, full, 3);
  }
  VQP_DEVICE void load_tokens(const Wide8Steps &step, int slot) const {
    const int m_tile = step.m_tile(), bytes = scale_bytes(m_tile);
    load_box(ring.stage(slot), p.x, step.k_tile * kRow, m_tile * kWide8Tokens, ring.full(slot));
    if (bytes)
      load_bytes(ring.scales(slot),
                 p.call.x_scales + step.k_tile * p.call.x_scale_stride + static_cast<int64_t>(m_tile) * kWide8Tokens,
                 bytes, ring.full(slot));
  }

  VQP_DEVICE void run() const {
    prefetch_map(p.x);
    prefetch_map(p.w);
    /* In a dependent launch the kernel ahead may still be making x: the first weights do not wait for it. */
    int ahead = 0;
    for (Wide8Steps step(p); ahead < ring.kStages && step.exists(); ++ahead, step.next()) load_weights(step, ahead);
    if (p.dependent) dependency_wait(), dependency_launch();
    RingPlace<wide8_stages(kChannels)> place;
    place.parity = 1; /* of the pass before the first */
    for (Wide8Steps step(p); step.exists(); step.next(), place.next()) {
      if (ahead) {
        --ahead;
      } else {
        mbarrier_wait_cluster(ring.empty(place.slot), place.parity);
        load_weights(step, place.slot);
      }
      load_tokens(step, place.slot);
    }
  }
};

/* A warpgroup that multiplies: 64 tokens x kChannels. */
template <int kKind, int kChannels, bool kPromote>
struct Wide8Consumer {
  typedef typename Sum8<kKind>::Type Sum;
  static constexpr int kTiles = kChannels / 8;

  const Wide8Params &p;
  const Wide8Ring<kChannels> &ring;
  const int lane, row; /* of the block's tile: this thread's first, the other is 8 further */
  char *const table;   /* of this warp */
  RingPlace<wide8_stages(kChannels)> place;
  Sum sum[kTiles][4];

  VQP_DEVICE Wide8Consumer(const Wide8Params &params, const Wide8Ring<kChannels> &r)
      : p(params),
        ring(r),
        lane(thread_index() & 31),
        row(thread_index() / 32 * 16 + (lane >> 2)),
        table(r.memory + wide8_tables_at(kChannels) + thread_index() / 32 * wide8_table(kChannels)) {
    VQP_UNROLL
    for (int t = 0; t < kTiles; ++t)
      VQP_UNROLL
      for (int i = 0; i < 4; ++i) sum[t][i] = 0;
    wgmma8_hold(sum);
  }

  VQP_DEVICE void issue_products(Sum (&into)[kTiles][4], bool accumulate) const {
    char *const stage = ring.stage(place.slot);
    const uint64_t x = tile_descriptor(shared_address(stage + thread_index() / 128 * 64 * kRow));
    const uint64_t w = tile_descriptor(shared_address(stage + kWide8X));
    converge(); /* lanes may leave the wait for the stage one by one */
    wgmma_fence();
    VQP_UNROLL
    for (int s = 0; s < kRow / 32; ++s) wgmma8(into, x + 2 * s, w + 2 * s, accumulate || s);
    wgmma_commit();
  }

  /* This warp has read the stage: told to each block whose copies fill it. */
  VQP_DEVICE void release(int slot) const {
    converge();
    if (lane < p.cluster) mbarrier_arrive(ring.empty(slot), lane);
  }

  VQP_DEVICE void add_tiles(int n_tile) {
    for (int k = 0; k < p.k_tiles; ++k, place.next()) {
      mbarrier_wait(ring.full(place.slot), place.parity);
      issue_products(sum, k > 0);
      if (k == 0) fill_table(n_tile);
      wgmma8_wait<1>();
      if (k) release(place.slot ? place.slot - 1 : ring.kStages - 1);
    }
    wgmma8_wait<0>();
    release(place.slot ? place.slot - 1 : ring.kStages - 1);
    wgmma8_hold(sum);
  }

  VQP_DEVICE void take_over_tiles(int n_tile) {
    const bool grouped = p.call.grouped;
    const float *const w_scales = grouped ? p.call.w_scales + static_cast<int64_t>(n_tile) * p.k_tiles : nullptr;
    float next_scale = grouped ? load_global(w_scales) : 1;
    Sum part[kTiles][4];
    VQP_UNROLL
    for (int t = 0; t < kTiles; ++t)
      VQP_UNROLL
      for (int i = 0; i < 4; ++i) sum[t][i] = part[t][i] = 0;
    wgmma8_hold(part);
    for (int k = 0; k < p.k_tiles; ++k, place.next()) {
      mbarrier_wait(ring.full(place.slot), place.parity);
      issue_products(part, false);
      if (k == 0) fill_table(n_tile);
      float scale[2] = {next_scale, next_scale};
      if (grouped) {
        const float *const scales = reinterpret_cast<const float *>(ring.scales(place.slot));
        if (k + 1 < p.k_tiles) next_scale = load_global(w_scales + k + 1);
        VQP_UNROLL
        for (int half = 0; half < 2; ++half)
          scale[half] = exists(half) ? load_shared<float>(scales + row + 8 * half) * scale[half] : 0.0f;
      }
      wgmma8_wait<0>();
      wgmma8_hold(part);
      release(place.slot);
      VQP_UNROLL
      for (int t = 0; t < kTiles; ++t)
        VQP_UNROLL
        for (int i = 0; i < 4; ++i) sum[t][i] += part[t][i] * scale[i >> 1];
    }
  }

  int64_t first_row = 0; /* of the tile */
  VQP_DEVICE bool exists(int half) const { return first_row + row + 8 * half < p.call.m; }

  /* What the outputs of a tile need of its channels, into this warp's own table while its first products run. */
  VQP_DEVICE void fill_table(int n_tile) const {
    const vqp_cuda_w8a8 &c = p.call;
    converge(); /* the tile before has been stored */
    for (int i = lane; i < kChannels; i += 32) {
      const int64_t channel = static_cast<int64_t>(n_tile) * kChannels + i;
      const bool inside = channel < c.n;
      store_shared(table + 4 * i, inside && !c.grouped ? load_global(c.w_scales + channel) : 1.0f);
      if (c.bias)
        store_shared(table + 4 * (kChannels + i), inside ? bias_of(c, channel) : 0.0f);
      if (kKind == kInt8 && c.x_zeros)
        store_shared(table + 4 * (2 * kChannels + i), inside ? load_global(c.w_sums + channel) : 0);
    }
  }

  /* Four lanes share a row and have 2 of every 8 channels: afterwards lane l of them has the 8 of word l. */
  VQP_DEVICE void exchange(uint32_t (&words)[4]) const {
    VQP_UNROLL
    for (int bit = 1; bit <= 2; bit *= 2) {
      const bool upper = lane & bit;
      VQP_UNROLL
      for (int i = 0; i < 4; ++i) {
        if (i & bit) continue;
        const uint32_t given = as_bits(shuffle_xor(as_float(upper ? words[i] : words[i | bit]), bit));
        if (upper)
          words[i] = given;
        else
          words[i | bit] = given;
      }
    }
  }

  /* 8 neighbouring outputs of a row, as far as they exist. */
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

  /* From sums to outputs, rounded as `finish` does. */
  VQP_DEVICE void store(int n_tile) const {
    const vqp_cuda_w8a8 &c = p.call;
    float scale[2] = {1, 1};
    int32_t zero[2] = {0, 0};
    VQP_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int64_t at = (first_row + row + 8 * half) * c.x_scale_stride;
      if (c.grouped || !exists(half)) continue;
      scale[half] = load_written(c.x_scales + at);
      if (c.x_zeros) zero[half] = load_written(c.x_zeros + at);
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
          Sum total = sum[t + j][i];
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
    for (Wide8Steps step(p); step.exists(); step.next_tile()) {
      first_row = static_cast<int64_t>(step.m_tile()) * kWide8Tokens;
      if constexpr (kPromote)
        take_over_tiles(step.tile.n_tile);
      else
        add_tiles(step.tile.n_tile);
      store(step.tile.n_tile);
    }
  }
};

template <int kKind, int kChannels, bool kPromote>
VQP_DEVICE void wide8_block(const Wide8Params &p) {
  typedef Wide8Ring<kChannels> Ring;
  const Ring ring = {shared_memory()};
  const int warp = thread_index() / 32;
  if (thread_index() == 0) {
    for (int slot = 0; slot < Ring::kStages; ++slot) {
      mbarrier_init(ring.full(slot), 1);
      mbarrier_init(ring.empty(slot), kThreads / 32 * p.cluster);
    }
    mbarrier_init_fence();
  }
  /* No block of the cluster copies into another, or arrives there, before its barriers exist. Warps meet at barriers of
   * a cluster, and in what follows, as a whole. */
  converge();
  if (p.cluster > 1)
    cluster_barrier();
  else
    barrier();
  converge();
  if (warp >= kThreads / 32) {
    give_registers<40>();
    if (thread_index() == kThreads)
      Wide8Producer<kChannels, kPromote>{p, ring}.run();
    else if (p.dependent)
      dependency_wait(), dependency_launch();
  } else {
    take_registers<232>();
    if (p.dependent) dependency_wait(), dependency_launch(); /* scales of x are read with plain loads */
    Wide8Consumer<kKind, kChannels, kPromote>(p, ring).run();
  }
  /* Nor does one end while the other may still do so. */
  converge();
  if (p.cluster > 1) cluster_barrier();
}

}  // namespace vqp

#endif
