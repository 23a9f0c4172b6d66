// W8A8: activations to INT8, int8 x int8 products summed in int32, one FP32 scaling at the end.
//
// The ISA unit provides a micro-kernel K:
//   K::Element              what an activation becomes: uint8_t or int16_t
//   K::kOffset              added to q; the end subtracts (zero + offset) * sum of the channel's codes
//   K::put(q, out)          stores 16 activations, each quad in the order the products want
//   K::micro<ROWS, PANELS>  adds a range of input features to the int32 totals of PANELS panels and of
//                           1 to kRowBlock rows; or, where rows come in units of kRowUnit > 1,
//                           K::multiply<PANELS>(rows), which may read the rows that fill up the last unit
#pragma once

#include "quantize.h"

namespace {

constexpr int64_t kInt8Chunk = 1024;  // input features between reads of the totals

#if defined(__AVX512BW__)
// Activations as unsigned bytes, x + 128: for products of unsigned with signed bytes.
struct UnsignedBytes {
    using Element = uint8_t;
    static constexpr int kOffset = 128;

    VQP_INLINE_MEMBER static void put(const int32_t *q, uint8_t *out) {
        _mm_storeu_si128(reinterpret_cast<__m128i *>(out), _mm512_cvtepi32_epi8(_mm512_loadu_si512(q)));
    }
};
#endif

template <class Element>
struct Int8Args {
    const int8_t *const *weights;  // one pointer per panel: [quad of features][16 lanes][4]
    const Element *x;              // [row][feature of the chunk]
    int64_t x_stride, quads;
    int32_t *total;  // [row][panel][16]
};

// Sixteen activations of a row, zero beyond k.
VQP_INLINE void load_row16(const W8a8 &a, int64_t row, int64_t i, float *out) {
    if (i + kLanes <= a.k) {
        load16(a.x, a.x_dtype, row * a.k + i, out);
    } else {
        for (int64_t l = 0; l < kLanes; ++l) {
            out[l] = i + l < a.k ? load_element(a.x, a.x_dtype, row * a.k + i + l) : 0.0f;
        }
    }
}

static void row_scale(const W8a8 &a, int64_t row, float *scale, float *zero) {
    if (a.in_scale) {
        *scale = *a.in_scale;
        *zero = a.in_zero ? static_cast<float>(*a.in_zero) : 0.0f;
        return;
    }
    float low[kLanes] = {}, high[kLanes] = {}, x[kLanes];
    int64_t first = 0;
#if defined(__AVX512BW__)
    __m512 least16 = _mm512_setzero_ps(), most16 = least16;
    for (; first + kLanes <= a.k; first += kLanes) {
        const __m512 v = load_vector(a.x, a.x_dtype, row * a.k + first);
        least16 = _mm512_min_ps(v, least16);
        most16 = _mm512_max_ps(v, most16);
    }
    _mm512_storeu_ps(low, least16);
    _mm512_storeu_ps(high, most16);
#endif
    for (int64_t i = first; i < a.k; i += kLanes) {
        load_row16(a, row, i, x);
        for (int l = 0; l < kLanes; ++l) {
            low[l] = x[l] < low[l] ? x[l] : low[l];
            high[l] = x[l] > high[l] ? x[l] : high[l];
        }
    }
    float bottom = 0, top = 0;
    for (int l = 0; l < kLanes; ++l) {
        bottom = low[l] < bottom ? low[l] : bottom;
        top = high[l] > top ? high[l] : top;
    }
    *zero = 0;
    if (a.symmetric) {
        *scale = (top > -bottom ? top : -bottom) / 127.0f;
        if (!(*scale > 0)) *scale = 1;
    } else {
        *scale = (top - bottom) / 255.0f;
        if (!(*scale > 0)) *scale = 1;
        *zero = clamp(round_even(clamp(-128.0f - bottom / *scale, -512.0f, 512.0f)), -128.0f, 127.0f);
    }
}

template <class K>
void prepare_int8(const W8a8 &a, int64_t begin, int64_t end) {
    using Element = typename K::Element;
    for (int64_t row = begin; row < end; ++row) {
        Element *const xq = static_cast<Element *>(a.xq);
        float scale, zero, x[kLanes];
        row_scale(a, row, &scale, &zero);
        for (int64_t i = 0; i < a.kp; i += kLanes) {
            int32_t q[kLanes];
#if defined(__AVX512BW__)
            if (i + kLanes <= a.k) {
                const __m512 v = load_vector(a.x, a.x_dtype, row * a.k + i);
                const __m512i codes = quantize16(v, _mm512_set1_ps(scale), _mm512_set1_ps(zero));
                _mm512_storeu_si512(q, _mm512_add_epi32(codes, _mm512_set1_epi32(K::kOffset)));
            } else
#endif
            {
                load_row16(a, row, i, x);
                for (int l = 0; l < kLanes; ++l) q[l] = quantize(x[l], scale, zero) + K::kOffset;
            }
            const int64_t start = i / kInt8Chunk * kInt8Chunk, features = least(kInt8Chunk, a.kp - start);
            K::put(q, xq + start * a.m + row * features + (i - start));
        }
        a.x_scale[row] = scale;
        a.x_zero[row] = static_cast<int32_t>(zero) + K::kOffset;
    }
}

template <class K>
size_t int8_scratch(int64_t rows, int64_t panels) {
    const int64_t groups = (panels + K::kPanels - 1) / K::kPanels;
    return static_cast<size_t>(rows * groups * K::kPanels * kLanes) * sizeof(int32_t);
}

// total (16 lanes of one panel) to y. Must round as the reference does: no contraction to FMA.
VQP_INLINE void finish_int8(const W8a8 &a, int64_t row, int64_t panel, const int32_t *total) {
    alignas(64) float out[kLanes];
    const float *w_scale = a.w_scale + panel * kLanes;
    const int32_t *w_sum = a.w_sum + panel * kLanes;
    for (int l = 0; l < kLanes; ++l) {
        // Unsigned: the intermediate may wrap, the difference does not.
        const uint32_t sum = static_cast<uint32_t>(total[l]) -
                             static_cast<uint32_t>(a.x_zero[row]) * static_cast<uint32_t>(w_sum[l]);
        out[l] = static_cast<float>(static_cast<int32_t>(sum)) * (a.x_scale[row] * w_scale[l]);
    }
    finish16(a.y, a.x_dtype, row, panel, a.n, a.bias, out);
}

template <class K, int PANELS, int ROWS>
VQP_INLINE void int8_dispatch(int64_t rows, const Int8Args<typename K::Element> &args) {
    if constexpr (ROWS > 0) {
        if (rows == ROWS) {
            K::template micro<ROWS, PANELS>(args);
        } else {
            int8_dispatch<K, PANELS, ROWS - 1>(rows, args);
        }
    }
}

// Panels [begin, end), PANELS at a time; totals are [group of panels][row][16 * PANELS].
template <class K, int PANELS>
void int8_tile(const W8a8 &a, int64_t begin, int64_t end, int64_t chunk_features, int32_t *totals) {
    using Element = typename K::Element;
    const Element *xq = static_cast<const Element *>(a.xq);
    constexpr int64_t width = PANELS * kLanes;
    const int64_t groups = (end - begin + PANELS - 1) / PANELS;
    std::memset(totals, 0, static_cast<size_t>(groups * a.m * width) * sizeof(int32_t));
    for (int64_t start = 0; start < a.kp; start += chunk_features) {
        const int64_t features = least(chunk_features, a.kp - start), quads = features / 4;
        for (int64_t g = 0; g < groups; ++g) {
            const int8_t *weights[PANELS];
            for (int64_t p = 0; p < PANELS; ++p) {
                // Past the last panel the last one is read again, and its result dropped.
                weights[p] = a.data + (least(begin + g * PANELS + p, end - 1) * a.kp + start) * kLanes;
            }
            const int64_t blocks = (a.m + K::kRowBlock - 1) / K::kRowBlock;
            for (int64_t b = 0; b < blocks; ++b) {
                const auto [row, rows] = row_block<K::kRowUnit>(a.m, b, blocks);
                const Int8Args<Element> args{weights, xq + start * a.m + row * features, features, quads,
                                             totals + (g * a.m + row) * width};
                if constexpr (K::kRowUnit > 1) {
                    K::template multiply<PANELS>(rows, args);
                } else {
                    int8_dispatch<K, PANELS, K::kRowBlock>(rows, args);
                }
            }
        }
    }
    for (int64_t row = 0; row < a.m; ++row) {
        prefetch_row(a.y, a.x_dtype, row + 8, a.m, a.n, begin, end);
        for (int64_t panel = begin; panel < end; ++panel) {
            const int64_t g = (panel - begin) / PANELS, p = (panel - begin) % PANELS;
            finish_int8(a, row, panel, totals + (g * a.m + row) * width + p * kLanes);
        }
    }
}

template <class K>
void gemm_int8(const W8a8 &a, int64_t begin, int64_t end, void *scratch) {
    int32_t *total = static_cast<int32_t *>(scratch);
    if (a.m == 1) {
        int8_tile<K, 1>(a, begin, end, a.kp, total);  // one sequential stream of weights
    } else {
        int8_tile<K, K::kPanels>(a, begin, end, kInt8Chunk, total);
    }
}

template <class K>
constexpr W8a8Kernels int8_kernels() {
    return {sizeof(typename K::Element), K::kPanels, 0, prepare_int8<K>, int8_scratch<K>, gemm_int8<K>};
}

}  // namespace
