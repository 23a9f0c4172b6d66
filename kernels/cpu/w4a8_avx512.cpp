// AVX-512 without VNNI; see w4a8_avx2.cpp for the range of the sums.
#define VQP_WIDTH 16
#include "w4a8.h"

namespace {

VQP_INLINE vi dot4(vi sum, vu w, vi x) {
    const __m512i pairs = _mm512_maddubs_epi16((__m512i)w, (__m512i)x);
    return sum + (vi)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
}

}  // namespace

const vqp::Wna16Kernels vqp::w4a8_avx512 = VQP_W4A8_KERNELS;
