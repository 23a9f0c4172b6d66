/* The kernels of one weight kind: included by one file a kind, with VQP_KIND defined, so that they compile apart. */
#include "kernels.h"
#include "wide_kernel.h"

namespace vqp {

template <class T, int kKind, int kTokens, bool kFloatZeros>
VQP_KERNEL(kThreads, resident_limit(kTokens))
wna16(const VQP_PARAMETER Params p) {
  wna16_block<T, kKind, kTokens, kFloatZeros>(p);
}

/* Empty where the target has no wgmma; then the launch bound says so (device_of in abi.cu). */
template <class T, int kKind, int kTokens, bool kScaleOnce>
VQP_KERNEL(kWarpgroups ? kThreads : 32, 1)
wide(const VQP_PARAMETER Params p) {
  if constexpr (kWarpgroups) wide_block<T, kKind, kTokens, kScaleOnce>(p);
}

namespace {
template <class T, int kKind>
const void *kernel_for(int tokens, bool float_zeros) {
  constexpr bool kOnce = bits_of(kKind) <= kScaleOnceBits; /* where 256 tokens are never asked for: the other kernel */
  if (float_zeros) return reinterpret_cast<const void *>(&wna16<T, kKind, 16, kKind != kFp8>);
  return tokens == 8    ? reinterpret_cast<const void *>(&wna16<T, kKind, 8, false>)
         : tokens == 16 ? reinterpret_cast<const void *>(&wna16<T, kKind, 16, false>)
         : tokens == 32 ? reinterpret_cast<const void *>(&wna16<T, kKind, 32, false>)
         : tokens == 64 ? reinterpret_cast<const void *>(&wna16<T, kKind, 64, false>)
         : tokens == kWideTokens ? reinterpret_cast<const void *>(&wide<T, kKind, kWideTokens, false>)
                                 : reinterpret_cast<const void *>(&wide<T, kKind, kOnce ? 2 * kWideTokens : kWideTokens, kOnce>);
}
}  // namespace

template <>
const void *wna16_kernel<VQP_KIND>(bool half, int tokens, bool float_zeros) {
  return half ? kernel_for<Half, VQP_KIND>(tokens, float_zeros) : kernel_for<BFloat16, VQP_KIND>(tokens, float_zeros);
}

}  // namespace vqp
