// Sixteen-lane loads and stores with conversion. Compiled once per ISA unit, hence static.
#pragma once

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include <cstring>

#include "common.h"

namespace {

using namespace vqp;

#define VQP_INLINE static inline __attribute__((always_inline))
#define VQP_INLINE_MEMBER inline __attribute__((always_inline))

VQP_INLINE float as_float(uint32_t bits) {
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}

VQP_INLINE uint32_t as_bits(float f) {
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    return bits;
}

VQP_INLINE float from_bf16(uint16_t h) { return as_float(static_cast<uint32_t>(h) << 16); }

// Round to nearest even; NaN stays NaN.
VQP_INLINE uint16_t to_bf16(float f) {
    const uint32_t u = as_bits(f);
    const uint32_t rounded = (u + 0x7FFF + ((u >> 16) & 1)) >> 16;
    return static_cast<uint16_t>((u & 0x7FFFFFFF) > 0x7F800000 ? (u >> 16) | 0x40 : rounded);
}

VQP_INLINE float from_f16(uint16_t h) {
#if defined(__F16C__)
    return _cvtsh_ss(h);
#else
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 0x3FF;
    if (exponent == 31) return as_float(sign | 0x7F800000 | mantissa << 13);
    if (exponent == 0) {
        const float tiny = static_cast<float>(mantissa) * as_float(103u << 23);  // mantissa * 2^-24
        return as_float(as_bits(tiny) | sign);
    }
    return as_float(sign | (exponent + 112) << 23 | mantissa << 13);
#endif
}

VQP_INLINE uint16_t to_f16(float f) {
#if defined(__F16C__)
    return _cvtss_sh(f, 0);
#else
    const uint32_t u = as_bits(f), sign = (u >> 16) & 0x8000;
    const float magnitude = as_float(u & 0x7FFFFFFF);
    if (!(magnitude < 65520.0f)) {
        return static_cast<uint16_t>(sign | ((u & 0x7FFFFFFF) > 0x7F800000 ? 0x7E00 : 0x7C00));
    }
    if (magnitude < as_float(113u << 23)) {  // below 2^-14: adding 0.5 rounds at 2^-24, the subnormal step
        return static_cast<uint16_t>(sign | (as_bits(magnitude + 0.5f) - as_bits(0.5f)));
    }
    const uint32_t a = as_bits(magnitude), rounded = a + 0xFFF + ((a >> 13) & 1);
    return static_cast<uint16_t>(sign | ((rounded - (112u << 23)) >> 13));
#endif
}

VQP_INLINE float load_element(const void *p, int dtype, int64_t i) {
    if (dtype == VQP_F32) return static_cast<const float *>(p)[i];
    const uint16_t h = static_cast<const uint16_t *>(p)[i];
    return dtype == VQP_BF16 ? from_bf16(h) : from_f16(h);
}

// out[0..15] = p[i..i+15] as float.
VQP_INLINE void load16(const void *p, int dtype, int64_t i, float *out) {
    if (dtype == VQP_F32) {
        std::memcpy(out, static_cast<const float *>(p) + i, 64);
    } else if (dtype == VQP_U8) {
        const uint8_t *b = static_cast<const uint8_t *>(p) + i;
        for (int l = 0; l < kLanes; ++l) out[l] = static_cast<float>(b[l]);
    } else if (dtype == VQP_BF16) {
        const uint16_t *h = static_cast<const uint16_t *>(p) + i;
        for (int l = 0; l < kLanes; ++l) out[l] = from_bf16(h[l]);
    } else {
        const uint16_t *h = static_cast<const uint16_t *>(p) + i;
#if defined(__F16C__)
        for (int l = 0; l < kLanes; l += 8) {
            _mm256_storeu_ps(out + l, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(h + l))));
        }
#else
        for (int l = 0; l < kLanes; ++l) out[l] = from_f16(h[l]);
#endif
    }
}

#if defined(__AVX512BW__)
// Sixteen floats to bf16, as to_bf16.
VQP_INLINE __m256i to_bf16x16(__m512 v) {
    const __m512i u = _mm512_castps_si512(v), odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i quiet = _mm512_mask_or_epi32(rounded, nan, u, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(quiet, 16));
}
#endif

#if defined(__AVX512BW__)
// p[i..i+15] of an activation dtype as float.
VQP_INLINE __m512 load_vector(const void *p, int dtype, int64_t i) {
    if (dtype == VQP_F32) return _mm512_loadu_ps(static_cast<const float *>(p) + i);
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(static_cast<const uint16_t *>(p) + i));
    if (dtype == VQP_F16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
#endif

// p[i..i+count-1] = value[0..count-1], converted; count <= 16.
VQP_INLINE void store16(void *p, int dtype, int64_t i, const float *value, int64_t count) {
#if defined(__AVX512BW__)
    if (dtype == VQP_BF16 && count == kLanes) {
        const __m256i narrow = to_bf16x16(_mm512_loadu_ps(value));
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(static_cast<uint16_t *>(p) + i), narrow);
        return;
    }
#endif
    alignas(64) uint16_t half[kLanes];
    if (dtype == VQP_F32) {
        std::memcpy(static_cast<float *>(p) + i, value, static_cast<size_t>(count) * 4);
        return;
    }
    if (dtype == VQP_BF16) {
        for (int l = 0; l < kLanes; ++l) half[l] = to_bf16(value[l]);
    } else {
#if defined(__F16C__)
        for (int l = 0; l < kLanes; l += 8) {
            _mm_storeu_si128(reinterpret_cast<__m128i *>(half + l), _mm256_cvtps_ph(_mm256_loadu_ps(value + l), 0));
        }
#else
        for (int l = 0; l < kLanes; ++l) half[l] = to_f16(value[l]);
#endif
    }
    std::memcpy(static_cast<uint16_t *>(p) + i, half, static_cast<size_t>(count) * 2);
}

VQP_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Block `b` of `blocks` of nearly equal height, in units of UNIT rows: 13 rows are 5 + 4 + 4, not 6 + 6 + 1.
struct Rows {
    int64_t first, count;
};
template <int64_t UNIT>
VQP_INLINE Rows row_block(int64_t m, int64_t b, int64_t blocks) {
    const int64_t units = (m + UNIT - 1) / UNIT, first = units * b / blocks * UNIT;
    return {first, least(m, units * (b + 1) / blocks * UNIT) - first};
}

// Asks for the place of panels [begin, end) in row `row` of y: rows lie pages apart.
VQP_INLINE void prefetch_row(const void *y, int dtype, int64_t row, int64_t m, int64_t n, int64_t begin, int64_t end) {
    if (row >= m) return;
    const int64_t size = dtype == VQP_F32 ? 4 : 2, last = least(end * kLanes, n);
    const char *p = static_cast<const char *>(y) + (row * n + begin * kLanes) * size;
    for (int64_t i = 0; i < (last - begin * kLanes) * size; i += 64) __builtin_prefetch(p + i, 1);
}

// Row `row` of y, panel `panel`: total + bias.
VQP_INLINE void finish16(void *y, int dtype, int64_t row, int64_t panel, int64_t n, const float *bias, float *total) {
    const int64_t first = panel * kLanes, count = least(kLanes, n - first);
    if (bias) {
        for (int64_t l = 0; l < count; ++l) total[l] += bias[first + l];
    }
    store16(y, dtype, row * n + first, total, count);
}

}  // namespace
