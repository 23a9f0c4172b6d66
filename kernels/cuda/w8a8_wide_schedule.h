/* The arithmetic of the 8-bit product for large batches (sm_90a, w8a8_wide_kernel.h): tiles, ring, blocks.
 *
 * A block stays on its multiprocessor and computes tile after tile of 128 tokens x 128 or 256 channels. Two blocks of a
 * cluster take neighbouring tiles along the tokens, and each brings half of the weights for both.
 *
 *   shared   [stages][128 rows of x | `channels` rows of W]   a row: 128 bytes of K, 128-byte swizzle
 *            [stages][128 scales of x]                        block scales only
 *            [8 warps][scales | biases | sums of the codes]   of the tile's channels, a copy a warp
 *            [stages] full [stages] empty                     barriers
 */
#ifndef VQP_CUDA_W8A8_WIDE_SCHEDULE_H
#define VQP_CUDA_W8A8_WIDE_SCHEDULE_H

#include "async.h"
#include "w8a8_schedule.h"

namespace vqp {

constexpr int kWide8Tokens = 128;                   /* of a block: 64 a warpgroup */
constexpr int kWide8Threads = kThreads + 128;       /* two warpgroups that multiply, one that loads */
constexpr int kWide8Band = 2048;                    /* tokens whose tiles follow each other, for L2's sake */
constexpr int kWide8X = kWide8Tokens * kRow;
VQP_HD constexpr int wide8_stages(int channels) { return channels == 128 ? 6 : 4; }
VQP_HD constexpr int wide8_stage(int channels) { return kWide8X + channels * kRow; }
VQP_HD constexpr int wide8_scales_at(int channels) { return wide8_stages(channels) * wide8_stage(channels); }
VQP_HD constexpr int wide8_table(int channels) { return 3 * channels * 4; }
VQP_HD constexpr int wide8_tables_at(int channels) {
  return wide8_scales_at(channels) + wide8_stages(channels) * kWide8Tokens * 4;
}
VQP_HD constexpr int wide8_barriers_at(int channels) {
  return wide8_tables_at(channels) + kThreads / 32 * wide8_table(channels);
}
VQP_HD constexpr int wide8_shared(int channels) { return wide8_barriers_at(channels) + 16 * wide8_stages(channels); }

struct Wide8Params {
  TensorMap x, w; /* boxes of 128 tokens, and of each block's share of the channels */
  vqp_cuda_w8a8 call;
  int k_tiles, m_tiles, n_tiles;
  int cluster;   /* blocks that share weights: 1 or 2 */
  int clusters;  /* of the grid */
  int vector;    /* outputs may be written as 16 bytes */
  int dependent; /* the kernel may start before the one ahead has ended */
};

/* Tile `index` of all: its first tile along the tokens, in units of a cluster, and its tile along the channels. Bands of
 * tokens, through all channels of a band first: what runs at one time shares tokens and channels in L2. */
struct Wide8Tile {
  int unit, n_tile;
};
VQP_HD Wide8Tile wide8_tile(int index, int units, int n_tiles, int cluster) {
  const int band = kWide8Band / kWide8Tokens / cluster, first = index / (band * n_tiles) * band;
  const int inside = index % (band * n_tiles), size = units - first < band ? units - first : band;
  return {first + inside % size, inside / size};
}

inline bool wide8_serves(const vqp_cuda_w8a8 &c, const Device &device) {
  /* The order of FP32 sums is another than in the small kernels, which serve few rows. */
  return device.warpgroups && !c.quantize_x && !(c.batch_invariant && c.kind == kFp8);
}

/* Sums of 128 channels and the part of a K tile are as many registers as sums of 256 channels. */
inline int wide8_most_channels(const vqp_cuda_w8a8 &c) { return c.grouped || c.promote ? 128 : 256; }

/* Clocks of a plan: a multiprocessor's tensor cores do 4096 multiplications a clock, L2 brings about 40 bytes. */
inline double wide8_cost(const vqp_cuda_w8a8_plan &plan, int cluster, int k_tiles) {
  const double tiles = static_cast<double>(ceil_div(plan.m_tiles, cluster)) * cluster * plan.n_tiles;
  const double rounds = ceil(tiles / plan.blocks);
  const double mma = kWide8Tokens * static_cast<double>(plan.channels) * kRow / 4096;
  const double bytes = (kWide8X + static_cast<double>(plan.channels) * kRow / cluster) / 40;
  return rounds * (k_tiles * (mma > bytes ? mma : bytes) + 500 + 8.0 * plan.channels);
}

inline int make_wide8_plan(const vqp_cuda_w8a8 &c, const Device &device, vqp_cuda_w8a8_plan *out) {
  const int error = check_w8a8(c);
  if (error) return error;
  if (!wide8_serves(c, device)) return VQP_CUDA_EDEVICE;
  const int k_tiles = static_cast<int>(ceil_div(c.kp, kRow));
  double best = -1;
  for (int channels = 128; channels <= wide8_most_channels(c); channels *= 2)
    for (int cluster = 1; cluster <= 2; ++cluster) {
      vqp_cuda_w8a8_plan plan = {};
      plan.tokens = kWide8Tokens;
      plan.channels = channels;
      plan.m_tiles = static_cast<int>(ceil_div(c.m, kWide8Tokens));
      plan.n_tiles = static_cast<int>(ceil_div(c.n, channels));
      const int64_t tiles = ceil_div(plan.m_tiles, cluster) * cluster * plan.n_tiles;
      if (tiles > 0x3FFFFFFF) return VQP_CUDA_ESHAPE;
      plan.splits = 1;
      plan.clustered = cluster > 1;
      plan.stages = wide8_stages(channels);
      plan.shared_bytes = wide8_shared(channels);
      plan.blocks = device.multiprocessors / cluster * cluster;
      if (tiles < plan.blocks) plan.blocks = static_cast<int>(tiles);
      plan.dependent = c.dependent;
      if (plan.shared_bytes > device.shared_per_block || (tiles && !plan.blocks)) continue;
      const double clocks = tiles ? wide8_cost(plan, cluster, k_tiles) : 0;
      if (best >= 0 && clocks >= best) continue;
      best = clocks;
      *out = plan;
    }
  return best < 0 ? VQP_CUDA_EDEVICE : VQP_CUDA_OK;
}

/* A map of rows of codes: (rows, columns) bytes, rows `stride` apart, a box of `box` rows x 128 columns. */
struct Wide8Matrix {
  const void *base;
  int64_t rows, columns, stride;
  int box;
};
inline Wide8Matrix wide8_x(const vqp_cuda_w8a8 &c) { return {c.x, c.m, c.kp, c.x_stride, kWide8Tokens}; }
inline Wide8Matrix wide8_w(const vqp_cuda_w8a8 &c, const vqp_cuda_w8a8_plan &plan) {
  return {c.w, c.n, c.kp, c.kp, plan.clustered ? plan.channels / 2 : plan.channels};
}

/* All but the maps. */
inline Wide8Params wide8_params(const vqp_cuda_w8a8 &c, const vqp_cuda_w8a8_plan &plan) {
  Wide8Params p = {};
  p.call = c;
  p.k_tiles = static_cast<int>(ceil_div(c.kp, kRow));
  p.m_tiles = plan.m_tiles;
  p.n_tiles = plan.n_tiles;
  p.cluster = plan.clustered ? 2 : 1;
  p.clusters = plan.blocks / p.cluster;
  p.vector = c.n % 8 == 0 && !(reinterpret_cast<uintptr_t>(c.y) & 15);
  p.dependent = plan.dependent;
  return p;
}

}  // namespace vqp

#endif
