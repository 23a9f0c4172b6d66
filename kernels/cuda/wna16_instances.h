/* The kernels of one weight kind: included by one file a kind, with VQP_KIND defined, so that they compile apart. */
#include "kernels.h"
#include "wna16_kernel.h"

namespace vqp {

template <class T, int kKind, int kTokens, bool kFloatZeros>
VQP_KERNEL(kThreads, kTokens >= 64 ? 1 : 2)
wna16(const VQP_PARAMETER Params p) {
  wna16_block<T, kKind, kTokens, kFloatZeros>(p);
}

namespace {
template <class T, int kKind>
const void *kernel_for(int tokens, bool float_zeros) {
  if (float_zeros) return reinterpret_cast<const void *>(&wna16<T, kKind, 16, kKind != kFp8>);
  return tokens == 8    ? reinterpret_cast<const void *>(&wna16<T, kKind, 8, false>)
         : tokens == 16 ? reinterpret_cast<const void *>(&wna16<T, kKind, 16, false>)
         : tokens == 32 ? reinterpret_cast<const void *>(&wna16<T, kKind, 32, false>)
                        : reinterpret_cast<const void *>(&wna16<T, kKind, 64, false>);
}
}  // namespace

template <>
const void *wna16_kernel<VQP_KIND>(bool half, int tokens, bool float_zeros) {
  return half ? kernel_for<Half, VQP_KIND>(tokens, float_zeros) : kernel_for<BFloat16, VQP_KIND>(tokens, float_zeros);
}

}  // namespace vqp
