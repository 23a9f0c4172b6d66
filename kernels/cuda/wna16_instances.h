/* The kernels of one weight kind. A .cu file per kind defines VQP_KIND and includes this, so that kinds compile in
 * parallel. */
#include "wna16_kernels.h"
#include "wna16_wide_kernel.h"

namespace vqp {

template <class T, int kKind, int kTokens, bool kFloatZeros>
VQP_KERNEL(kThreads, max_ctas_per_sm(kTokens))
wna16(const VQP_PARAMETER Wna16Params p) {
  wna16_cta<T, kKind, kTokens, kFloatZeros>(p);
}

/* Empty where the target has no wgmma, which device_of in abi.cu detects by the launch bound of 32 threads. */
template <class T, int kKind, int kTokens, bool kScaleOnce>
VQP_KERNEL(kWarpgroups ? kThreads : 32, 1)
wna16_wide(const VQP_PARAMETER Wna16Params p) {
  if constexpr (kWarpgroups) wna16_wide_cta<T, kKind, kTokens, kScaleOnce>(p);
}

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
