// vpmaddubsw adds two products in 16 bits: 2 * 127 * 127 fits, so nothing saturates.
#define VQP_WIDTH 8
#include "w4a8.h"

namespace {

VQP_INLINE vi dot4(vi sum, vu w, vi x) {
    const __m256i pairs = _mm256_maddubs_epi16((__m256i)w, (__m256i)x);
    return sum + (vi)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

}  // namespace

const vqp::Wna16Kernels vqp::w4a8_avx2 = VQP_W4A8_KERNELS;
