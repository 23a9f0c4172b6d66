/* The launch plan of the W8A8 GEMM for large batches (sm_90a, w8a8_wide_kernel.h): tiles, ring, grid.
 *
 * A persistent CTA computes tile after tile of 128 tokens x 128 or 256 channels. The two CTAs of a cluster take
 * neighbouring tiles along the tokens, and each loads half of the weights for both by multicast.
 *
 *   shared   [stages][128 rows of x | `channels` rows of W]   a row: 128 bytes of K, 128-byte swizzle
 *            [stages][128 scales of x]                        block scales only
 *            [8 warps][scales | biases | sums of the codes]   of the tile's channels, one copy per warp
 *            [stages] full [stages] empty                     mbarriers
 */
#ifndef VQP_CUDA_W8A8_WIDE_SCHEDULE_H
#define VQP_CUDA_W8A8_WIDE_SCHEDULE_H

#include "async.h"
#include "w8a8_schedule.h"

namespace vqp {

constexpr int kW8a8WideTokens = 128;             /* per CTA: 64 per consumer warpgroup */
constexpr int kW8a8WideThreads = kThreads + 128; /* two consumer warpgroups, one producer */
constexpr int kW8a8WideBand = 2048;              /* tokens whose tiles are scheduled together, for reuse in L2 */
constexpr int kW8a8WideXBytes = kW8a8WideTokens * kRow;
VQP_HD constexpr int w8a8_wide_stages(int channels) { return channels == 128 ? 6 : 4; }
VQP_HD constexpr int w8a8_wide_stage_bytes(int channels) { return kW8a8WideXBytes + channels * kRow; }
VQP_HD constexpr int w8a8_wide_scales_offset(int channels) {
  return w8a8_wide_stages(channels) * w8a8_wide_stage_bytes(channels);
}
VQP_HD constexpr int w8a8_wide_table_bytes(int channels) { return 3 * channels * 4; }
VQP_HD constexpr int w8a8_wide_tables_offset(int channels) {
  return w8a8_wide_scales_offset(channels) + w8a8_wide_stages(channels) * kW8a8WideTokens * 4;
}
VQP_HD constexpr int w8a8_wide_barriers_offset(int channels) {
  return w8a8_wide_tables_offset(channels) + kThreads / 32 * w8a8_wide_table_bytes(channels);
}
VQP_HD constexpr int w8a8_wide_smem_bytes(int channels) {
  return w8a8_wide_barriers_offset(channels) + 16 * w8a8_wide_stages(channels);
}

struct W8a8WideParams {
  TensorMap x, w; /* boxes of 128 tokens, and of each CTA's share of the channels */
  vqp_cuda_w8a8 call;
  int k_tiles, m_tiles, n_tiles;
  int cluster;   /* CTAs per cluster, which share weights: 1 or 2 */
  int clusters;  /* in the grid */
  int vector;    /* outputs may be written as 16 bytes */
  int dependent; /* the kernel may start before the preceding one has ended */
};

/* Tile `index` in schedule order: its position along the tokens, in units of a cluster, and along the channels.
 * Tokens are divided into bands, and all channels of a band come before the next band, so that concurrent tiles
 * share tokens and channels in L2. */
struct W8a8WideTile {
  int unit, n_tile;
};
VQP_HD W8a8WideTile w8a8_wide_tile(int index, int units, int n_tiles, int cluster) {
  const int band = kW8a8WideBand / kW8a8WideTokens / cluster, first = index / (band * n_tiles) * band;
  const int inside = index % (band * n_tiles), size = units - first < band ? units - first : band;
  return {first + inside % size, inside / size};
}

inline bool w8a8_wide_can_run(const vqp_cuda_w8a8 &c, const Device &device) {
  /* FP32 accumulation has another order than in the kernels for few rows. */
  return device.warpgroups && !c.quantize_x && !(c.batch_invariant && c.kind == kFp8);
}

/* Two sets of accumulators of 128 channels take as many registers as one of 256 channels. */
inline int w8a8_wide_max_channels(const vqp_cuda_w8a8 &c) { return c.grouped || c.promote ? 128 : 256; }

/* Estimated clocks of a plan: per clock, the tensor cores of an SM do 4096 multiply-adds, and L2 delivers about 40
 * bytes to it. */
inline double w8a8_wide_cost(const vqp_cuda_w8a8_plan &plan, int cluster, int k_tiles) {
  const double tiles = static_cast<double>(ceil_div(plan.m_tiles, cluster)) * cluster * plan.n_tiles;
  const double rounds = ceil(tiles / plan.ctas);
  const double mma = kW8a8WideTokens * static_cast<double>(plan.channels) * kRow / 4096;
  const double bytes = (kW8a8WideXBytes + static_cast<double>(plan.channels) * kRow / cluster) / 40;
  return rounds * (k_tiles * (mma > bytes ? mma : bytes) + 500 + 8.0 * plan.channels);
}

inline int make_w8a8_wide_plan(const vqp_cuda_w8a8 &c, const Device &device, vqp_cuda_w8a8_plan *out) {
  const int error = check_w8a8(c);
  if (error) return error;
  if (!w8a8_wide_can_run(c, device)) return VQP_CUDA_EDEVICE;
  const int k_tiles = static_cast<int>(ceil_div(c.kp, kRow));
  double best = -1;
  for (int channels = 128; channels <= w8a8_wide_max_channels(c); channels *= 2)
    for (int cluster = 1; cluster <= 2; ++cluster) {
      vqp_cuda_w8a8_plan plan = {};
      plan.tokens = kW8a8WideTokens;
      plan.channels = channels;
      plan.m_tiles = static_cast<int>(ceil_div(c.m, kW8a8WideTokens));
      plan.n_tiles = static_cast<int>(ceil_div(c.n, channels));
      const int64_t tiles = ceil_div(plan.m_tiles, cluster) * cluster * plan.n_tiles;
      if (tiles > 0x3FFFFFFF) return VQP_CUDA_ESHAPE;
      plan.splits = 1;
      plan.clustered = cluster > 1;
      plan.stages = w8a8_wide_stages(channels);
      plan.shared_bytes = w8a8_wide_smem_bytes(channels);
      plan.ctas = device.sms / cluster * cluster;
      if (tiles < plan.ctas) plan.ctas = static_cast<int>(tiles);
      plan.dependent = c.dependent;
      if (plan.shared_bytes > device.smem_per_cta || (tiles && !plan.ctas)) continue;
      const double clocks = tiles ? w8a8_wide_cost(plan, cluster, k_tiles) : 0;
      if (best >= 0 && clocks >= best) continue;
      best = clocks;
      *out = plan;
    }
  return best < 0 ? VQP_CUDA_EDEVICE : VQP_CUDA_OK;
}

/* A tensor map of codes: (rows, columns) bytes, rows `stride` bytes apart, a box of `box` rows x 128 columns. */
struct W8a8WideMatrix {
  const void *base;
  int64_t rows, columns, stride;
  int box;
};
inline W8a8WideMatrix w8a8_wide_x(const vqp_cuda_w8a8 &c) { return {c.x, c.m, c.kp, c.x_stride, kW8a8WideTokens}; }
inline W8a8WideMatrix w8a8_wide_w(const vqp_cuda_w8a8 &c, const vqp_cuda_w8a8_plan &plan) {
  return {c.w, c.n, c.kp, c.kp, plan.clustered ? plan.channels / 2 : plan.channels};
}

/* All but the tensor maps. */
inline W8a8WideParams w8a8_wide_params(const vqp_cuda_w8a8 &c, const vqp_cuda_w8a8_plan &plan) {
  W8a8WideParams p = {};
  p.call = c;
  p.k_tiles = static_cast<int>(ceil_div(c.kp, kRow));
  p.m_tiles = plan.m_tiles;
  p.n_tiles = plan.n_tiles;
  p.cluster = plan.clustered ? 2 : 1;
  p.clusters = plan.ctas / p.cluster;
  p.vector = c.n % 8 == 0 && !(reinterpret_cast<uintptr_t>(c.y) & 15);
  p.dependent = plan.dependent;
  return p;
}

}  // namespace vqp

#endif
