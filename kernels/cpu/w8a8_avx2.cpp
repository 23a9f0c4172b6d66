// W8A8 by vpmaddwd. vpmaddubsw would saturate: bytes are widened to 16 bits by shifts instead, which
// pair features (0, 2) and (1, 3) of a quad; activations are stored in that order.

#include <immintrin.h>

#include "w8a8.h"

namespace {

struct Avx2 {
    using Element = int16_t;
    static constexpr int kOffset = 0, kPanels = 1, kRowBlock = 4, kRowUnit = 1;

    VQP_INLINE_MEMBER static void put(const int32_t *q, int16_t *out) {
        for (int h = 0; h < 2; ++h) {
            const __m256i wide = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(q + 8 * h));
            const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
            const __m128i low = _mm_shufflelo_epi16(words, _MM_SHUFFLE(3, 1, 2, 0));
            _mm_storeu_si128(reinterpret_cast<__m128i *>(out + 8 * h), _mm_shufflehi_epi16(low, _MM_SHUFFLE(3, 1, 2, 0)));
        }
    }

    VQP_INLINE_MEMBER static __m256i broadcast(const int16_t *x) {
        int32_t pair;
        std::memcpy(&pair, x, 4);
        return _mm256_set1_epi32(pair);
    }

    template <int ROWS, int PANELS>
    static void micro(const Int8Args<int16_t> &args) {
        static_assert(PANELS == 1, "two vectors hold one panel");
        const int8_t *w = args.weights[0];
        __m256i sum[ROWS][2];
        for (int r = 0; r < ROWS; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
        for (int64_t i = 0; i < args.quads; ++i, w += 64) {
            __m256i even[2], odd[2];
            for (int h = 0; h < 2; ++h) {
                const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(w + 32 * h));
                even[h] = _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8);
                odd[h] = _mm256_srai_epi16(bytes, 8);
            }
            for (int r = 0; r < ROWS; ++r) {
                const int16_t *x = args.x + r * args.x_stride + 4 * i;
                for (int h = 0; h < 2; ++h) {
                    const __m256i a = _mm256_madd_epi16(even[h], broadcast(x));
                    const __m256i b = _mm256_madd_epi16(odd[h], broadcast(x + 2));
                    sum[r][h] = _mm256_add_epi32(sum[r][h], _mm256_add_epi32(a, b));
                }
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 8
            for (int h = 0; h < 2; ++h) {
                __m256i *total = reinterpret_cast<__m256i *>(args.total + r * kLanes + h * 8);
                _mm256_storeu_si256(total, _mm256_add_epi32(_mm256_loadu_si256(total), sum[r][h]));
            }
        }
    }
};

}  // namespace

const vqp::W8a8Kernels vqp::w8a8_avx2 = int8_kernels<Avx2>();
