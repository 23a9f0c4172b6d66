/* The kernels of one code kind. A .cu file per kind defines VQP_KIND and includes this, so that kinds compile in
 * parallel. */
#include "w8a8_entry.h"
#include "w8a8_kernels.h"

namespace vqp {

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
