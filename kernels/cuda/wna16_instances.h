/* The kernels of one weight kind. A .cu file per kind defines VQP_KIND and includes this, so that kinds compile in
 * parallel. */
#include "wna16_entry.h"
#include "wna16_kernels.h"

namespace vqp {

namespace {
template <class T, int kKind>
const void *kernel_for(int tokens, bool float_zeros) {
  constexpr bool kOnce = bits_of(kKind) <= kScaleOnceBits; /* otherwise no plan has 256 tokens */
  if (float_zeros) return reinterpret_cast<const void *>(&wna16<T, kKind, 16, kKind != kFp8>);
  constexpr int kWidest = kOnce ? 2 * kWideTokens : kWideTokens;
  return tokens == 8             ? reinterpret_cast<const void *>(&wna16<T, kKind, 8, false>)
         : tokens == 16          ? reinterpret_cast<const void *>(&wna16<T, kKind, 16, false>)
         : tokens == 32          ? reinterpret_cast<const void *>(&wna16<T, kKind, 32, false>)
         : tokens == 64          ? reinterpret_cast<const void *>(&wna16<T, kKind, 64, false>)
         : tokens == kWideTokens ? reinterpret_cast<const void *>(&wna16_wide<T, kKind, kWideTokens, false>)
                                 : reinterpret_cast<const void *>(&wna16_wide<T, kKind, kWidest, kOnce>);
}
}  // namespace

template <>
const void *wna16_kernel<VQP_KIND>(bool half, int tokens, bool float_zeros) {
  return half ? kernel_for<Half, VQP_KIND>(tokens, float_zeros) : kernel_for<BFloat16, VQP_KIND>(tokens, float_zeros);
}

}  // namespace vqp
