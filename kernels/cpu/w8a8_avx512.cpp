// W8A8 by vpmaddwd on 512-bit vectors, for AVX-512 without VNNI; see w8a8_avx2.cpp for the order.

#include <immintrin.h>

#include "w8a8.h"

namespace {

struct Avx512 {
    using Element = int16_t;
    static constexpr int kOffset = 0, kPanels = 2, kRowBlock = 6, kRowUnit = 1;

    VQP_INLINE_MEMBER static void put(const int32_t *q, int16_t *out) {
        const __m256i words = _mm512_cvtepi32_epi16(_mm512_loadu_si512(q));
        const __m256i low = _mm256_shufflelo_epi16(words, _MM_SHUFFLE(3, 1, 2, 0));
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(out), _mm256_shufflehi_epi16(low, _MM_SHUFFLE(3, 1, 2, 0)));
    }

    VQP_INLINE_MEMBER static __m512i broadcast(const int16_t *x) {
        int32_t pair;
        std::memcpy(&pair, x, 4);
        return _mm512_set1_epi32(pair);
    }

    template <int ROWS, int PANELS>
    static void micro(const Int8Args<int16_t> &args) {
        __m512i sum[ROWS][PANELS];
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 8
            for (int p = 0; p < PANELS; ++p) sum[r][p] = _mm512_setzero_si512();
        }
        for (int64_t i = 0; i < args.quads; ++i) {
            __m512i even[PANELS], odd[PANELS];
            for (int p = 0; p < PANELS; ++p) {
                const __m512i bytes = _mm512_loadu_si512(args.weights[p] + 64 * i);
                even[p] = _mm512_srai_epi16(_mm512_slli_epi16(bytes, 8), 8);
                odd[p] = _mm512_srai_epi16(bytes, 8);
            }
            for (int r = 0; r < ROWS; ++r) {
                const int16_t *x = args.x + r * args.x_stride + 4 * i;
                for (int p = 0; p < PANELS; ++p) {
                    const __m512i a = _mm512_madd_epi16(even[p], broadcast(x));
                    const __m512i b = _mm512_madd_epi16(odd[p], broadcast(x + 2));
                    sum[r][p] = _mm512_add_epi32(sum[r][p], _mm512_add_epi32(a, b));
                }
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 8
            for (int p = 0; p < PANELS; ++p) {
                int32_t *total = args.total + (r * PANELS + p) * kLanes;
                _mm512_storeu_si512(total, _mm512_add_epi32(_mm512_loadu_si512(total), sum[r][p]));
            }
        }
    }
};

}  // namespace

const vqp::W8a8Kernels vqp::w8a8_avx512 = int8_kernels<Avx512>();
