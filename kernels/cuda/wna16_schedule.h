/* The launch plan of the weight-only GEMM: tiles, split-K, the stages of the ring, and the cost model that chooses
 * among them.
 *
 * A CTA computes 128 output channels x `tokens` tokens over a range of K tiles of 128, streamed through a ring of
 * stages. Its 8 warps are 4 along N (32 channels each) x 2 along K (64 columns of each K tile). That shape is the same
 * for every `tokens`, and so is the order of accumulation: with the same number of splits, a row has the same bits in
 * any batch.
 */
#ifndef VQP_CUDA_WNA16_SCHEDULE_H
#define VQP_CUDA_WNA16_SCHEDULE_H

#include "cost_model.h"
#include "layout.h"
#include "vqp_cuda.h"

namespace vqp {

constexpr int kRowTiles = kTileN / kRowTile; /* per CTA */
constexpr int kWideTokens = 128;             /* from here on a CTA is that of wna16_wide_kernel.h */
constexpr int kScaleOnceBits = 5;            /* three stages of 256 tokens fit up to here */
VQP_HD constexpr int wide_stages(int tokens) { return tokens == kWideTokens ? 4 : 3; }
constexpr int kClusterGroup = 16;            /* SMs that can form clusters with each other, at least */
constexpr int64_t kMaxWorkspace = 256 << 20; /* of the grouped GEMM, whose rows cannot be divided among calls */
constexpr int kOneGroup = 30;                /* the group shift of one scale per row */

/* Groups are counted in steps of 16 columns: group = step >> shift. */
VQP_HD int group_shift(int64_t groups, int group_size) {
  if (groups == 1) return kOneGroup;
  int shift = 0;
  while ((kStep << shift) < group_size) ++shift;
  return shift;
}
VQP_HD int groups_of_tile(int shift) { return shift < 3 ? 8 >> shift : 1; }
/* Bit s: the accumulators of a slab are scaled after step s. */
VQP_HD int flush_mask(int shift) { return shift == 0 ? 0xF : shift == 1 ? 0xA : 0x8; }

VQP_HD int dtype_bytes(int dtype) {
  return dtype == VQP_CUDA_F32 ? 4 : dtype == VQP_CUDA_U8 ? 1 : dtype == VQP_CUDA_NONE ? 0 : 2;
}

/* Byte offsets in a stage: codes, then activations, scales, zeros. Every part is a multiple of 16 bytes. */
struct Stage {
  int x, scales, zeros, bytes;
};
VQP_HD Stage stage_of(int bits, int tokens, int shift, int scale_bytes, int zero_bytes) {
  Stage stage;
  const int table = kRowTiles * groups_of_tile(shift) * kRowTile;
  stage.x = kTileN * kTileK / 8 * bits;
  stage.scales = stage.x + tokens * kTileK * 2;
  stage.zeros = stage.scales + table * scale_bytes;
  stage.bytes = stage.zeros + table * zero_bytes;
  /* The swizzle of wgmma applies to addresses, so its tiles are 1024-byte aligned. */
  if (tokens >= kWideTokens) stage.bytes = (stage.bytes + 1023) & ~1023;
  return stage;
}

/* Byte offset of 16-byte chunk `chunk` (8 columns) of token `token` among the activations of a stage.
 * The XOR distributes the rows that one ldmatrix reads over all banks. */
VQP_HD constexpr int x_offset(int token, int chunk) { return token * (kTileK * 2) + ((chunk ^ (token & 7)) << 4); }

/* The same for wgmma: consecutive tiles of 64 columns in the swizzle of wgmma.h. */
VQP_HD constexpr int wide_x_offset(int tokens, int token, int chunk) {
  return (chunk >> 3) * tokens * 128 + token * 128 + (((chunk & 7) ^ (token & 7)) << 4);
}

/* CTAs per SM for which there are registers: the second argument of the kernels' launch bounds. */
VQP_HD constexpr int max_ctas_per_sm(int tokens) { return tokens >= 64 ? 1 : 2; }

/* Estimated clocks of a plan: those of the SM with the most CTAs, and no less than memory takes for all of them.
 *
 *   memory        the packed weights at kMemoryBytesPerClock
 *   instructions  about 450 issue slots per K tile and CTA; a CTA that has the SM for itself cannot hide its waits: 600
 *   mma           about 3.5 clocks each over four tensor cores; 1.4 for the same work with wgmma
 *   start, end    kCtaClocks per wave of CTAs, and split_k_clocks
 */
inline double wna16_cost(const Device &device, const vqp_cuda_plan &plan, int bits, int k_tiles) {
  const double ctas = static_cast<double>(plan.n_tiles) * plan.m_tiles * plan.splits;
  const double tiles = static_cast<double>(ceil_div(k_tiles, plan.splits));
  const int resident = resident_ctas(device, plan.shared_bytes, max_ctas_per_sm(plan.tokens));
  /* The CTAs of a cluster share a group of SMs: some groups of an H200 have 16 SMs, some 18. */
  const int slots = kClusterGroup * resident, per_group = plan.clustered ? slots / plan.splits * plan.splits : slots;
  const double waves = ceil(ctas / (static_cast<double>(per_group) / kClusterGroup * device.sms));
  const double evenly = ceil(ctas / device.sms), queued = (waves - 1) * resident + 1;
  const double most = evenly > queued ? evenly : queued;
  const double memory = ctas * tiles * (kTileN * kTileK / 8.0 * bits / kMemoryBytesPerClock) / device.sms;
  const double mmas = (kTileN / 16.0) * (kTileK / 16.0) * (plan.tokens / 8.0);
  const double mma = mmas * (plan.tokens < kWideTokens ? 3.5 : 1.4);
  const double issue = most < 2 || resident < 2 ? 600 : 450;
  const double busy = most * tiles * (issue > mma ? issue : mma);
  const double stream = memory > busy ? memory : busy;
  return stream + waves * kCtaClocks +
         split_k_clocks(device, plan.tokens, plan.splits, plan.clustered, ctas, waves);
}

/* Whether the kernels of wna16_wide_kernel.h can run a call: groups from 32, integer zero points; 256 tokens need
 * one scale per row and narrow weights. They accumulate in another order, so batch-invariant calls stay with the
 * other kernels. */
inline bool wide_can_run(const Device &device, const vqp_cuda_linear &c, int tokens) {
  const int shift = group_shift(c.groups, c.group_size);
  return device.warpgroups && !c.batch_invariant && !(c.zeros && c.zero_dtype == VQP_CUDA_F32) && shift >= 1 &&
         (tokens == kWideTokens ||
          (tokens == 2 * kWideTokens && shift == kOneGroup && bits_of(c.kind) <= kScaleOnceBits));
}

/* 8, 4 or 2 stages: the most with which two CTAs fit on an SM or, from 64 tokens on, where registers allow only one
 * CTA, the most that fit at all. */
inline bool set_stages_and_smem(const Device &device, const vqp_cuda_linear &c, vqp_cuda_plan &plan) {
  const int shift = group_shift(c.groups, c.group_size), zero_bytes = c.zeros ? dtype_bytes(c.zero_dtype) : 0;
  plan.stage_bytes = stage_of(bits_of(c.kind), plan.tokens, shift, dtype_bytes(c.scale_dtype), zero_bytes).bytes;
  const int room = max_ctas_per_sm(plan.tokens) < 2 ? device.smem_per_cta : smem_of_two(device);
  plan.stages = plan.tokens >= kWideTokens ? wide_stages(plan.tokens)
                                           : most_stages(room, [&](int stages) { return stages * plan.stage_bytes; });
  const int ring = plan.stages * plan.stage_bytes, sums = sum_tile_bytes(plan.tokens);
  plan.shared_bytes = ring > sums ? ring : sums;
  return plan.shared_bytes <= device.smem_per_cta;
}

inline int check_wna16(const vqp_cuda_linear &c) {
  if (c.m < 0 || c.n < 1 || c.k < 1 || c.k_padded < c.k || c.k_padded % kSlab || c.groups < 1) return VQP_CUDA_ESHAPE;
  if (c.k_padded > (1 << 20) || c.m > (1 << 24)) return VQP_CUDA_ESHAPE; /* offsets are 32 bits */
  if (ceil_div(c.n, kTileN) > kMaxGrid) return VQP_CUDA_ESHAPE;
  if (c.kind < 2 || c.kind > kFp8 || (c.kind == kFp8 && c.zeros)) return VQP_CUDA_EDTYPE;
  if (c.x_dtype != VQP_CUDA_F16 && c.x_dtype != VQP_CUDA_BF16) return VQP_CUDA_EDTYPE;
  if (c.scale_dtype < VQP_CUDA_F32 || c.scale_dtype > VQP_CUDA_F16) return VQP_CUDA_EDTYPE;
  if (c.zeros && c.zero_dtype != VQP_CUDA_U8 && c.zero_dtype != VQP_CUDA_F32) return VQP_CUDA_EDTYPE;
  if (c.bias && (c.bias_dtype < VQP_CUDA_F32 || c.bias_dtype > VQP_CUDA_F16)) return VQP_CUDA_EDTYPE;
  if (c.groups > 1) {
    const int size = c.group_size;
    if (size < kStep || (size & (size - 1)) || ceil_div(c.k_padded, size) != c.groups) return VQP_CUDA_ESHAPE;
  }
  if (c.rows && (!c.experts || !c.padded_rows || c.top_k < 1 || c.sorted_rows < 1 || c.num_experts < 1))
    return VQP_CUDA_ESHAPE;
  const uintptr_t wide = reinterpret_cast<uintptr_t>(c.data) | reinterpret_cast<uintptr_t>(c.scales) |
                         reinterpret_cast<uintptr_t>(c.zeros);
  return wide & 15 ? VQP_CUDA_EALIGN : VQP_CUDA_OK;
}

/* FP32 zero points need the sums of the activations, which only the kernels for 16 tokens accumulate. */
inline bool float_zeros(const vqp_cuda_linear &c) { return c.zeros && c.zero_dtype == VQP_CUDA_F32; }

inline int tokens_for(int64_t m) { return m <= 8 ? 8 : m <= 16 ? 16 : m <= 32 ? 32 : 64; }

/* The cheapest number of splits for tiles of `tokens` tokens; `clocks`: its estimated cost. */
inline int plan_splits(const vqp_cuda_linear &c, const Device &device, int tokens, vqp_cuda_plan *out, double *clocks) {
  const int bits = bits_of(c.kind), k_tiles = static_cast<int>(ceil_div(c.k_padded, kTileK));
  vqp_cuda_plan plan = {};
  plan.tokens = tokens;
  const int64_t rows = c.rows ? c.sorted_rows : c.m, m_tiles = ceil_div(rows, plan.tokens);
  if (m_tiles > kMaxGrid) return VQP_CUDA_ESHAPE;
  plan.m_tiles = static_cast<int>(m_tiles);
  plan.n_tiles = static_cast<int>(ceil_div(c.n, kTileN));
  if (!set_stages_and_smem(device, c, plan)) return VQP_CUDA_EDEVICE;
  plan.clustered = device.clusters;
  plan.dependent = c.dependent && device.clusters;
  /* The number of splits determines the order of accumulation. Where that must not depend on the batch, it is chosen
   * for one row. */
  vqp_cuda_plan candidate = plan;
  if (c.batch_invariant) {
    candidate.tokens = 8, candidate.m_tiles = c.rows ? c.top_k : 1;
    set_stages_and_smem(device, c, candidate);
  }
  const int64_t sums = static_cast<int64_t>(plan.m_tiles) * plan.tokens * c.n * 4; /* bytes per split */
  const int most = !c.rows || device.clusters ? kMaxSplits
                   : c.batch_invariant        ? 1
                                              : static_cast<int>(sums ? kMaxWorkspace / sums : kMaxSplits);
  *clocks = -1;
  for (candidate.splits = 1; candidate.splits <= kMaxSplits && candidate.splits <= k_tiles; ++candidate.splits) {
    if (candidate.splits > 1 && candidate.splits > most) break;
    const double found = wna16_cost(device, candidate, bits, k_tiles);
    if (*clocks < 0 || found < *clocks) *clocks = found, plan.splits = candidate.splits;
  }
  if (plan.splits == 1) plan.clustered = 0;
  plan.workspace_bytes = plan.splits == 1 || plan.clustered ? 0 : plan.splits * sums;
  *out = plan;
  return VQP_CUDA_OK;
}

/* Choose tile, splits and stages: the cheapest of at most 3 kMaxSplits candidates. `tokens`: the tile size, or 0 to
 * choose one. */
inline int make_wna16_plan(const vqp_cuda_linear &c, const Device &device, int tokens, vqp_cuda_plan *out) {
  int error = check_wna16(c);
  if (error) return error;
  const int small = float_zeros(c) ? 16 : tokens ? tokens : tokens_for(c.m);
  const bool legal = small == 8 || small == 16 || small == 32 || small == 64 || wide_can_run(device, c, small);
  if (!legal || (c.rows && (tokens != small || c.sorted_rows % tokens))) return VQP_CUDA_ESHAPE;
  double best;
  error = plan_splits(c, device, small, out, &best);
  if (tokens || c.m <= 64) return error;
  for (int wide = kWideTokens; wide <= 2 * kWideTokens; wide *= 2) {
    vqp_cuda_plan plan;
    double clocks;
    if (!wide_can_run(device, c, wide) || plan_splits(c, device, wide, &plan, &clocks)) continue;
    if (error || clocks < best) best = clocks, *out = plan, error = VQP_CUDA_OK;
  }
  return error;
}

}  // namespace vqp

#endif
