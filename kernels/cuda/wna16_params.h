/* The parameters of a weight-only GEMM kernel: the call, the plan, and what follows from both. */
#ifndef VQP_CUDA_WNA16_PARAMS_H
#define VQP_CUDA_WNA16_PARAMS_H

#include "half_math.h"
#include "wna16_schedule.h"

namespace vqp {

struct Wna16Params {
  vqp_cuda_linear call;
  float *partial; /* [splits][m_tiles * tokens][n], or null */
  Stage stage;
  int row_tiles, slabs, k_tiles;
  int splits, stages, clustered;
  int group_shift, flush_mask, scale_bytes, zero_bytes;
  int x_element_wise; /* act-order, or rows of x that are not made of aligned 16-byte chunks */
  int dependent;      /* launched while the preceding kernel may still run */
};

inline Wna16Params wna16_params(const vqp_cuda_linear &c, const vqp_cuda_plan &plan, float *workspace) {
  Wna16Params p = {};
  p.call = c;
  p.partial = plan.splits > 1 && !plan.clustered ? workspace : nullptr;
  p.row_tiles = static_cast<int>(ceil_div(c.n, kRowTile));
  p.slabs = static_cast<int>(c.k_padded / kSlab);
  p.k_tiles = static_cast<int>(ceil_div(c.k_padded, kTileK));
  p.splits = plan.splits;
  p.stages = plan.stages;
  p.clustered = plan.clustered;
  p.group_shift = group_shift(c.groups, c.group_size);
  p.flush_mask = flush_mask(p.group_shift);
  p.scale_bytes = dtype_bytes(c.scale_dtype);
  p.zero_bytes = c.zeros ? dtype_bytes(c.zero_dtype) : 0;
  p.stage = stage_of(bits_of(c.kind), plan.tokens, p.group_shift, p.scale_bytes, p.zero_bytes);
  p.x_element_wise = c.perm || c.k % 8 || c.x_stride % 8 || (reinterpret_cast<uintptr_t>(c.x) & 15);
  p.dependent = plan.dependent;
  return p;
}

/* A floating-point value of `dtype` as FP32; the callables read from global or shared memory. */
template <class Load16, class Load32>
VQP_HD float widen(int dtype, int64_t index, Load16 load16, Load32 load32) {
  if (dtype == VQP_CUDA_F32) return load32(index);
  const uint32_t bits = load16(index);
  return dtype == VQP_CUDA_F16 ? to_float<Half>(bits) : to_float<BFloat16>(bits);
}

/* The row of y (and, over top_k, of x) behind row `row` of the tiles; -1 for padding. */
template <class Load>
VQP_HD int64_t pair_of(const vqp_cuda_linear &c, int64_t row, Load load) {
  if (!c.rows) return row < c.m ? row : -1;
  if (row >= c.sorted_rows) return -1;
  const int64_t pair = load(c.rows + row);
  return pair < c.m ? pair : -1;
}
/* Whether the weight contains the expert of a tile. */
VQP_HD bool holds_expert(const vqp_cuda_linear &c, int64_t expert) {
  return !c.rows || (expert >= 0 && expert < c.num_experts);
}
VQP_HD int64_t x_row_of(const vqp_cuda_linear &c, int64_t pair) { return c.rows ? pair / c.top_k : pair; }

}  // namespace vqp

#endif
