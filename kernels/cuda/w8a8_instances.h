/* The kernels of one code kind. A .cu file per kind defines VQP_KIND and includes this, so that kinds compile in
 * parallel. */
#include "w8a8_kernel.h"
#include "w8a8_kernels.h"

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

namespace {
template <int kTokens, bool kFused>
const void *instance(bool grouped) {
  if constexpr (VQP_KIND == kFp8 && !kFused && kTokens <= kMaxGroupedTokens)
    if (grouped) return reinterpret_cast<const void *>(&w8a8<VQP_KIND, kTokens, true, kFused>);
  /* A fused quantization means decode, where accumulating in FP32 is free: FP8 always does. */
  return reinterpret_cast<const void *>(&w8a8<VQP_KIND, kTokens, VQP_KIND == kFp8 && kFused, kFused>);
}
}  // namespace

template <>
const void *w8a8_kernel<VQP_KIND>(int tokens, bool grouped, bool fused) {
  if (fused) return tokens == 8 ? instance<8, true>(grouped) : instance<16, true>(grouped);
  return tokens == 8    ? instance<8, false>(grouped)
         : tokens == 16 ? instance<16, false>(grouped)
         : tokens == 32 ? instance<32, false>(grouped)
         : tokens == 64 ? instance<64, false>(grouped)
                        : instance<128, false>(grouped);
}

}  // namespace vqp
