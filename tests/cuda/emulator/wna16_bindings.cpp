/* The C interface of the emulator library: the calls of vqp_cuda.h with CPU pointers, and index maps for tests. */
#include <string.h>

#include "dequant.h"
#include "emulator.h"
#include "pack_kernel.h"
#include "wna16_wide_kernel.h"

namespace vqp {
namespace {

template <class T, int kKind>
void run(const Wna16Params &p, int tokens) {
  if (float_zeros(p.call)) return wna16_cta<T, kKind, 16, kKind != kFp8>(p);
  if (tokens == 8) return wna16_cta<T, kKind, 8, false>(p);
  if (tokens == 16) return wna16_cta<T, kKind, 16, false>(p);
  if (tokens == 32) return wna16_cta<T, kKind, 32, false>(p);
  if (tokens == 64) return wna16_cta<T, kKind, 64, false>(p);
  if (tokens == kWideTokens) return wna16_wide_cta<T, kKind, kWideTokens, false>(p);
  return wna16_wide_cta<T, kKind, 2 * kWideTokens, true>(p);
}

template <class T>
void run_wna16_kind(const Wna16Params &p, int tokens) {
  switch (p.call.kind) {
    case 2: return run<T, 2>(p, tokens);
    case 3: return run<T, 3>(p, tokens);
    case 4: return run<T, 4>(p, tokens);
    case 5: return run<T, 5>(p, tokens);
    case 6: return run<T, 6>(p, tokens);
    case 7: return run<T, 7>(p, tokens);
    case 8: return run<T, 8>(p, tokens);
    default: return run<T, kFp8>(p, tokens);
  }
}

template <class T>
uint32_t one_fragment(int kind, const uint32_t *words, int step, int reg, uint32_t zero) {
  const int half = reg & 1;
  switch (kind) {
    case 2: return dequantize<T, 2>(words, step, reg, zero_addend_of<T, 2>(zero, half));
    case 3: return dequantize<T, 3>(words, step, reg, zero_addend_of<T, 3>(zero, half));
    case 4: return dequantize<T, 4>(words, step, reg, zero_addend_of<T, 4>(zero, half));
    case 5: return dequantize<T, 5>(words, step, reg, zero_addend_of<T, 5>(zero, half));
    case 6: return dequantize<T, 6>(words, step, reg, zero_addend_of<T, 6>(zero, half));
    case 7: return dequantize<T, 7>(words, step, reg, zero_addend_of<T, 7>(zero, half));
    case 8: return dequantize<T, 8>(words, step, reg, zero_addend_of<T, 8>(zero, half));
    default: return dequantize<T, kFp8>(words, step, reg, 0);
  }
}

}  // namespace
}  // namespace vqp

using namespace vqp;

extern "C" {

const char *vqp_emulator_fault(void) { return emulator::fault().c_str(); }
void vqp_emulator_reset(uint64_t seed, int late_copies) { emulator::reset({seed, late_copies != 0}); }
void vqp_emulator_allow(const void *pointer, size_t bytes, int constant) { emulator::allow(pointer, bytes, constant); }

int vqp_emulator_plan(const vqp_cuda_linear *call, const Device *device, int tokens, vqp_cuda_plan *plan) {
  return make_wna16_plan(*call, *device, tokens, plan);
}

void vqp_emulator_run(const vqp_cuda_linear *call, const vqp_cuda_plan *plan, void *workspace) {
  const Wna16Params p = wna16_params(*call, *plan, static_cast<float *>(workspace));
  const bool half = call->x_dtype == VQP_CUDA_F16;
  emulator::launch({plan->splits, plan->m_tiles, plan->n_tiles}, kThreads, plan->shared_bytes,
                   plan->clustered ? plan->splits : 1, [&] {
                     half ? run_wna16_kind<Half>(p, plan->tokens) : run_wna16_kind<BFloat16>(p, plan->tokens);
                   }, plan->dependent);
  if (!p.partial) return;
  const int64_t rows = static_cast<int64_t>(plan->m_tiles) * plan->tokens;
  emulator::launch({static_cast<int>(ceil_div(call->n, kThreads)), 3, 1}, kThreads, 0, 1, [&] {
    half ? wna16_reduce_cta<Half>(p, rows, plan->tokens) : wna16_reduce_cta<BFloat16>(p, rows, plan->tokens);
  });
}

void vqp_emulator_pack(const uint8_t *codes, int64_t n, int64_t k, int64_t k_padded, const int32_t *perm, int kind,
                       uint8_t *data) {
  const PackParams p = {codes, perm, reinterpret_cast<uint32_t *>(data), n, k, k_padded, bits_of(kind)};
  emulator::launch({static_cast<int>(ceil_div(pack_words(p), kThreads)), 1, 1}, kThreads, 0, 1, [&] { pack_cta(p); });
}

/* All 32 lanes' A fragments [step][lane][reg] of one slab. */
void vqp_emulator_fragments(const uint8_t *slab, int kind, int half, uint32_t zero, uint32_t *out) {
  const int bits = bits_of(kind);
  for (int lane = 0; lane < 32; ++lane) {
    uint32_t words[8];
    for (int base = 0; base < bits; base += plane_width(bits, base))
      for (int word = 0; word < plane_width(bits, base); ++word)
        memcpy(&words[base + word], slab + word_offset(plane_width(bits, base), base, lane, word), 4);
    for (int step = 0; step < kSteps; ++step)
      for (int reg = 0; reg < 4; ++reg)
        out[(step * 32 + lane) * 4 + reg] = half ? one_fragment<Half>(kind, words, step, reg, zero)
                                                 : one_fragment<BFloat16>(kind, words, step, reg, zero);
  }
}

void vqp_emulator_split(int k_tiles, int splits, int split, int *begin, int *end) {
  const Range range = split_range(k_tiles, splits, split);
  *begin = range.begin, *end = range.end;
}

int vqp_emulator_x_offset(int token, int chunk) { return x_offset(token, chunk); }
uint32_t vqp_emulator_round(double value, int half) { return half ? emulated_round<Half>(value) : emulated_round<BFloat16>(value); }
double vqp_emulator_value(uint32_t bits, int half) { return half ? emulated_value<Half>(bits) : emulated_value<BFloat16>(bits); }

}  // extern "C"
