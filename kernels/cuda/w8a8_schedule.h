/* The launch plan of the W8A8 GEMM: tiles, stages, split-K, and the cost model that chooses among them.
 *
 * A CTA computes 128 output channels x T tokens over a range of K tiles of 128 bytes, streamed through a ring of
 * stages. Its 8 warps are 4 along N (32 channels each) x 2. The 2 divide K (64 columns of each tile) up to T = 64, and
 * the tokens for T = 128, where the accumulators of a warp would otherwise not fit in registers.
 *
 *   shared   [stages][128 rows of W | T rows of x | T scales of x, block scales only]
 *            With quantize_x the stages hold no x, and after them come
 *            [K tiles of the split][T rows of codes] [T scales][T zero points][range of each warp]
 *   row      128 bytes, 16-byte chunks XOR-swizzled by the row
 */
#ifndef VQP_CUDA_W8A8_SCHEDULE_H
#define VQP_CUDA_W8A8_SCHEDULE_H

#include "cost_model.h"
#include "quantize_kernel.h"
#include "vqp_cuda_w8a8.h"

namespace vqp {

constexpr int kRow = 128; /* bytes of K per tile */
constexpr int kWeightTile = kTileN * kRow;
constexpr int kMaxFusedTokens = 16;
constexpr int kMaxGroupedTokens = 64; /* two sets of accumulators: 128 registers per thread */

/* Byte offset of 16-byte chunk `chunk` of row `row` in a tile. */
VQP_HD constexpr int tile_offset(int row, int chunk) { return row * kRow + ((chunk ^ (row & 7)) << 4); }

struct W8a8Params {
  vqp_cuda_w8a8 call;
  uint32_t *partial;   /* [splits][m_tiles * tokens][n] accumulators, or null */
  float *row_scales;   /* with partial and quantize_x: [m_tiles * tokens], for the reduction */
  int32_t *row_zeros;
  int k_tiles, splits, stages, clustered;
  int stage_bytes, x_offset, scales_offset; /* within a stage */
  int codes_offset, table_offset;           /* with quantize_x */
  int vector;                       /* whole chunks of a 16-bit x may be read as 16 bytes */
  int dependent;                    /* the kernel may start before the preceding one has ended */
};

struct W8a8Smem {
  int stage_bytes, codes_offset, table_offset, bytes;
};
inline W8a8Smem w8a8_smem(const vqp_cuda_w8a8 &c, int tokens, int stages, int splits) {
  W8a8Smem s = {};
  const int tiles = static_cast<int>(ceil_div(ceil_div(c.kp, kRow), splits)), sums = sum_tile_bytes(tokens);
  s.stage_bytes = kWeightTile + (c.quantize_x ? 0 : tokens * kRow) + (c.grouped ? tokens * 4 : 0);
  const int ring = stages * s.stage_bytes;
  s.codes_offset = ring > sums ? ring : sums;
  s.table_offset = s.codes_offset + (c.quantize_x ? tiles * tokens * kRow : 0);
  s.bytes = s.table_offset + (c.quantize_x ? tokens * 8 + kRangeBytes : 0);
  return s;
}

inline W8a8Params w8a8_params(const vqp_cuda_w8a8 &c, const vqp_cuda_w8a8_plan &plan, void *workspace) {
  W8a8Params p = {};
  p.call = c;
  const int64_t rows = static_cast<int64_t>(plan.m_tiles) * plan.tokens;
  if (plan.splits > 1 && !plan.clustered) {
    p.partial = static_cast<uint32_t *>(workspace);
    if (c.quantize_x) {
      p.row_scales = reinterpret_cast<float *>(p.partial + plan.splits * rows * c.n);
      p.row_zeros = reinterpret_cast<int32_t *>(p.row_scales + rows);
    }
  }
  p.k_tiles = static_cast<int>(ceil_div(c.kp, kRow));
  p.splits = plan.splits;
  p.stages = plan.stages;
  p.clustered = plan.clustered;
  const W8a8Smem s = w8a8_smem(c, plan.tokens, plan.stages, plan.splits);
  p.stage_bytes = s.stage_bytes;
  p.x_offset = kWeightTile;
  p.scales_offset = kWeightTile + plan.tokens * kRow;
  p.codes_offset = s.codes_offset;
  p.table_offset = s.table_offset;
  p.vector = c.x_stride % kChunk == 0 && !(reinterpret_cast<uintptr_t>(c.x) & 15);
  p.dependent = plan.dependent;
  return p;
}

/* Scales, zero points and bias on accumulators (m, n) of another library: the reduction of one split. */
inline W8a8Params finish_params(const vqp_cuda_w8a8 &c, const void *sums) {
  W8a8Params p = {};
  p.call = c;
  p.partial = static_cast<uint32_t *>(const_cast<void *>(sums));
  p.splits = 1;
  return p;
}

inline int check_w8a8(const vqp_cuda_w8a8 &c) {
  if (c.m < 0 || c.n < 1 || c.k < 1 || c.kp != ceil_div(c.k, 16) * 16) return VQP_CUDA_ESHAPE;
  /* INT32 accumulators: 128 * 128 * k, or 255 * 128 * k with zero points, stay below 2^31. */
  if (c.n > (1 << 23) || c.m > (1 << 24) || c.kp >= (1 << 17)) return VQP_CUDA_ESHAPE;
  const bool zeros = c.x_zeros || (c.quantize_x && !c.x_scales && !c.symmetric);
  if (zeros && (!c.w_sums || c.kp > 65536)) return VQP_CUDA_ESHAPE;
  if (c.kind != kInt8 && c.kind != kFp8) return VQP_CUDA_EDTYPE;
  if (c.kind == kFp8 ? zeros : c.grouped) return VQP_CUDA_EDTYPE;
  if (c.y_dtype != VQP_CUDA_F16 && c.y_dtype != VQP_CUDA_BF16) return VQP_CUDA_EDTYPE;
  if (c.bias && (c.bias_dtype < VQP_CUDA_F32 || c.bias_dtype > VQP_CUDA_F16)) return VQP_CUDA_EDTYPE;
  if (c.quantize_x) {
    if (c.grouped || c.m > kMaxFusedTokens || c.x_scale_stride || (c.x_zeros && !c.x_scales)) return VQP_CUDA_ESHAPE;
  } else {
    if (!c.x_scales || c.x_stride % 16) return VQP_CUDA_ESHAPE;
    if (c.grouped ? c.x_scale_stride < c.m || c.x_scale_stride % 4 : c.x_scale_stride < 0 || c.x_scale_stride > 1)
      return VQP_CUDA_ESHAPE;
    const uintptr_t wide = reinterpret_cast<uintptr_t>(c.x) | (c.grouped ? reinterpret_cast<uintptr_t>(c.x_scales) : 0);
    if (wide & 15) return VQP_CUDA_EALIGN;
  }
  return reinterpret_cast<uintptr_t>(c.w) & 15 ? VQP_CUDA_EALIGN : VQP_CUDA_OK;
}

/* 8, 4 or 2 stages: the most with which two CTAs fit on an SM. */
inline bool set_stages(const Device &device, const vqp_cuda_w8a8 &c, vqp_cuda_w8a8_plan &plan) {
  plan.stages = most_stages(
      smem_of_two(device), [&](int stages) { return w8a8_smem(c, plan.tokens, stages, plan.splits).bytes; });
  plan.shared_bytes = w8a8_smem(c, plan.tokens, plan.stages, plan.splits).bytes;
  return plan.shared_bytes <= device.smem_per_cta;
}

/* Estimated clocks of a plan: an SM does an mma of 16 x 8 x 32 in 2 clocks, and reads at the rates of cost_model.h. */
inline double w8a8_cost(const Device &device, const vqp_cuda_w8a8 &c, const vqp_cuda_w8a8_plan &plan) {
  const int k_tiles = static_cast<int>(ceil_div(c.kp, kRow));
  const double ctas = static_cast<double>(plan.n_tiles) * plan.m_tiles * plan.splits;
  const int resident = resident_ctas(device, plan.shared_bytes, plan.tokens >= 64 && c.kind == kFp8 ? 1 : 2);
  const double per_wave = static_cast<double>(device.sms) * resident;
  const double waves = ctas <= per_wave ? 1 : ceil(ctas / per_wave);
  double sharing = ctas < per_wave ? ctas / device.sms : resident;
  if (sharing < 1) sharing = 1;
  const double bytes = kWeightTile / kMemoryBytesPerClock, mma = (kTileN / 16.0) * 4 * (plan.tokens / 8.0) * 2.0;
  double fixed = kCtaClocks;
  if (c.quantize_x) fixed += 1500 + 2.0 * c.m * c.k / kL2BytesPerClock * sharing;
  const double tiles = static_cast<double>(ceil_div(k_tiles, plan.splits));
  const double clocks = waves * (tiles * (bytes > mma ? bytes : mma) * sharing + fixed);
  return clocks + split_k_clocks(device, plan.tokens, plan.splits, plan.clustered, ctas, waves);
}

/* `fp8`: whether the device has FP8 tensor cores that the library's code uses. */
inline int make_w8a8_plan(const vqp_cuda_w8a8 &c, const Device &device, bool fp8, vqp_cuda_w8a8_plan *out) {
  const int error = check_w8a8(c);
  if (error) return error;
  if (c.kind == kFp8 && !fp8) return VQP_CUDA_EDEVICE;
  vqp_cuda_w8a8_plan plan = {};
  const int widest = c.batch_invariant || c.grouped || c.promote ? kMaxGroupedTokens : 128;
  plan.tokens = c.m <= 8 ? 8 : c.m <= 16 ? 16 : c.m <= 32 ? 32 : c.m <= 64 ? 64 : widest;
  const int64_t m_tiles = ceil_div(c.m, plan.tokens);
  if (m_tiles > kMaxGrid) return VQP_CUDA_ESHAPE;
  plan.m_tiles = static_cast<int>(m_tiles);
  plan.n_tiles = static_cast<int>(ceil_div(c.n, kTileN));
  if (plan.n_tiles > kMaxGrid) return VQP_CUDA_ESHAPE;
  plan.dependent = c.dependent && device.clusters; /* both need sm_90 */
  const int k_tiles = static_cast<int>(ceil_div(c.kp, kRow));
  double best = -1;
  for (int splits = 1; splits <= kMaxSplits && splits <= k_tiles; ++splits) {
    vqp_cuda_w8a8_plan candidate = plan;
    candidate.splits = splits;
    candidate.clustered = device.clusters && splits > 1;
    if (!set_stages(device, c, candidate)) continue;
    vqp_cuda_w8a8_plan priced = candidate;
    /* The number of splits determines the order of FP32 accumulation. Where that must not depend on the batch, estimate
     * the cost for one row. */
    if (c.batch_invariant && c.kind == kFp8) priced.tokens = 8, priced.m_tiles = 1, set_stages(device, c, priced);
    const double clocks = w8a8_cost(device, c, priced);
    if (best >= 0 && clocks >= best) continue;
    best = clocks;
    *out = candidate;
  }
  if (best < 0) return VQP_CUDA_EDEVICE;
  const int64_t rows = static_cast<int64_t>(out->m_tiles) * out->tokens;
  if (out->splits > 1 && !out->clustered)
    out->workspace_bytes = out->splits * rows * c.n * 4 + (c.quantize_x ? rows * 8 : 0);
  return VQP_CUDA_OK;
}

}  // namespace vqp

#endif
