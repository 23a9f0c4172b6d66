/* The entry point of the W8A8 GEMM on the device. */
#ifndef VQP_CUDA_W8A8_ENTRY_H
#define VQP_CUDA_W8A8_ENTRY_H

#include "w8a8_kernel.h"

namespace vqp {

/* CTAs per SM: two where a thread needs at most 128 registers. */
VQP_HD constexpr int max_ctas_per_sm_of(int kind, int tokens, bool grouped) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (kind == kFp8 && tokens >= 64) return 1;
#endif
  return tokens < 64 || (tokens == 64 && !grouped) || kind == kInt8 ? 2 : 1;
}

template <int kKind, int kTokens, bool kGrouped, bool kFused>
VQP_KERNEL(kThreads, max_ctas_per_sm_of(kKind, kTokens, kGrouped))
w8a8(const VQP_PARAMETER W8a8Params p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
  w8a8_cta<kKind, kTokens, kGrouped, kFused>(p);
#else
  /* E4M3 tensor cores came with sm_89; make_w8a8_plan refuses such calls. */
  if constexpr (kKind != kFp8) w8a8_cta<kKind, kTokens, kGrouped, kFused>(p);
#endif
}

}  // namespace vqp

#endif
