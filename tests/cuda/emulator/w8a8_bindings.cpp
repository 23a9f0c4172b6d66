/* The calls of the W8A8 kernels with CPU pointers, and their index maps for tests. */
#include "emulator.h"
#include "quantize_kernel.h"
#include "w8a8_kernel.h"
#include "w8a8_wide_kernel.h"

namespace vqp {
namespace {

template <class T>
void run_quantize(const QuantizeParams &p) {
  if (p.call.group_size) return quantize_groups_cta<T>(p);
  if (p.call.kind == kInt8)
    in_registers(p) ? quantize_rows_cta<T, kInt8, true>(p) : quantize_rows_cta<T, kInt8, false>(p);
  else
    in_registers(p) ? quantize_rows_cta<T, kFp8, true>(p) : quantize_rows_cta<T, kFp8, false>(p);
}

template <int kKind, int kTokens>
void run_tokens(const W8a8Params &p) {
  constexpr bool kWide = kTokens > kMaxGroupedTokens;
  if constexpr (kTokens <= kMaxFusedTokens)
    if (p.call.quantize_x) return w8a8_cta<kKind, kTokens, kKind == kFp8, true>(p);
  if constexpr (kKind == kFp8 && !kWide)
    if (p.call.grouped || p.call.promote) return w8a8_cta<kKind, kTokens, true, false>(p);
  w8a8_cta<kKind, kTokens, false, false>(p);
}

template <int kKind>
void run_w8a8_kind(const W8a8Params &p, int tokens) {
  switch (tokens) {
    case 8: return run_tokens<kKind, 8>(p);
    case 16: return run_tokens<kKind, 16>(p);
    case 32: return run_tokens<kKind, 32>(p);
    case 64: return run_tokens<kKind, 64>(p);
    default: return run_tokens<kKind, 128>(p);
  }
}

TensorMap map_of(const W8a8WideMatrix &m) {
  TensorMap map;
  map.base = static_cast<const char *>(m.base);
  map.rows = m.rows, map.columns = m.columns, map.stride = m.stride, map.box = m.box;
  return map;
}

void run_w8a8_wide(const W8a8WideParams &p, int channels) {
  if (p.call.kind == kInt8)
    return channels == 128 ? w8a8_wide_cta<kInt8, 128, false>(p) : w8a8_wide_cta<kInt8, 256, false>(p);
  if (p.call.grouped || p.call.promote) return w8a8_wide_cta<kFp8, 128, true>(p);
  channels == 128 ? w8a8_wide_cta<kFp8, 128, false>(p) : w8a8_wide_cta<kFp8, 256, false>(p);
}

}  // namespace
}  // namespace vqp

using namespace vqp;

extern "C" {

int vqp_emulator_quantize(const vqp_cuda_quantize *call, int shared_limit) {
  const int error = check_quantize(*call);
  if (error || !call->m) return error;
  const QuantizeParams p = quantize_params(*call, shared_limit);
  emulator::launch({static_cast<int>(quantize_ctas(p)), 1, 1}, kThreads, quantize_smem_bytes(p), 1,
                   [&] { call->x_dtype == VQP_CUDA_F16 ? run_quantize<Half>(p) : run_quantize<BFloat16>(p); });
  return VQP_CUDA_OK;
}

int vqp_emulator_w8a8_plan(const vqp_cuda_w8a8 *call, const Device *device, int fp8, vqp_cuda_w8a8_plan *plan) {
  return call->warpgroups ? make_w8a8_wide_plan(*call, *device, plan) : make_w8a8_plan(*call, *device, fp8, plan);
}

/* The shared memory of a plan whose splits a test has changed. */
int vqp_emulator_w8a8_shared(const vqp_cuda_w8a8 *call, vqp_cuda_w8a8_plan *plan) {
  plan->shared_bytes = w8a8_smem(*call, plan->tokens, plan->stages, plan->splits).bytes;
  return VQP_CUDA_OK;
}

void vqp_emulator_w8a8_run(const vqp_cuda_w8a8 *call, const vqp_cuda_w8a8_plan *plan, void *workspace) {
  if (plan->channels) {
    W8a8WideParams p = w8a8_wide_params(*call, *plan);
    p.x = map_of(w8a8_wide_x(*call)), p.w = map_of(w8a8_wide_w(*call, *plan));
    return emulator::launch({plan->ctas, 1, 1}, kW8a8WideThreads, plan->shared_bytes, p.cluster,
                            [&] { run_w8a8_wide(p, plan->channels); }, plan->dependent);
  }
  const W8a8Params p = w8a8_params(*call, *plan, workspace);
  emulator::launch({plan->splits, plan->m_tiles, plan->n_tiles}, kThreads, plan->shared_bytes,
                   plan->clustered ? plan->splits : 1, [&] {
                     call->kind == kInt8 ? run_w8a8_kind<kInt8>(p, plan->tokens) : run_w8a8_kind<kFp8>(p, plan->tokens);
                   }, plan->dependent);
  if (!p.partial) return;
  const int64_t rows = static_cast<int64_t>(plan->m_tiles) * plan->tokens;
  emulator::launch({static_cast<int>(ceil_div(call->n, 2 * kThreads)), 3, 1}, kThreads, 0, 1, [&] {
    call->kind == kInt8 ? w8a8_reduce_cta<kInt8>(p, rows) : w8a8_reduce_cta<kFp8>(p, rows);
  });
}

void vqp_emulator_w8a8_finish(const vqp_cuda_w8a8 *call, const void *sums) {
  const W8a8Params p = finish_params(*call, sums);
  emulator::launch({static_cast<int>(ceil_div(call->n, 2 * kThreads)), 2, 1}, kThreads, 0, 1, [&] {
    call->kind == kInt8 ? w8a8_reduce_cta<kInt8>(p, call->m) : w8a8_reduce_cta<kFp8>(p, call->m);
  });
}

/* The ring and memory of a plan whose channels a test has changed. */
int vqp_emulator_w8a8_wide_shared(vqp_cuda_w8a8_plan *plan) {
  plan->stages = w8a8_wide_stages(plan->channels);
  plan->shared_bytes = w8a8_wide_smem_bytes(plan->channels);
  return VQP_CUDA_OK;
}

/* The first tile along the tokens (in units of a cluster) and the tile along the channels of each index. */
void vqp_emulator_w8a8_wide_tiles(int tiles, int units, int n_tiles, int cluster, int *out) {
  for (int i = 0; i < tiles; ++i) {
    const W8a8WideTile tile = w8a8_wide_tile(i, units, n_tiles, cluster);
    out[2 * i] = tile.unit, out[2 * i + 1] = tile.n_tile;
  }
}

uint32_t vqp_emulator_e4m3(float value) { return e4m3_by_integers(value); }
float vqp_emulator_e4m3_value(uint32_t code) { return e4m3_value(code); }
}
