// 16 x 16 bytes, transposed: between channels in rows (as codes lie in memory) and features in rows (as in a tile).
#pragma once

#include <cstdint>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace vqp {

// out[j * out_stride + i] = in[i * in_stride + j] for i, j in [0, 16).
inline void transpose16(const uint8_t *in, int64_t in_stride, uint8_t *out, int64_t out_stride) {
#if defined(__SSE2__)
    __m128i a[16], b[16];
    for (int i = 0; i < 16; ++i) a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i *>(in + i * in_stride));
    // Four perfect shuffles of 16 rows with 16 columns are a transposition.
    for (int round = 0; round < 4; ++round) {
        for (int i = 0; i < 8; ++i) {
            b[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 8]);
            b[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 8]);
        }
        for (int i = 0; i < 16; ++i) a[i] = b[i];
    }
    for (int i = 0; i < 16; ++i) _mm_storeu_si128(reinterpret_cast<__m128i *>(out + i * out_stride), a[i]);
#else
    for (int i = 0; i < 16; ++i) {
        for (int j = 0; j < 16; ++j) out[j * out_stride + i] = in[i * in_stride + j];
    }
#endif
}

}  // namespace vqp
