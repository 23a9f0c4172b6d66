// Weight-only product with bf16 activations by vdpbf16ps: pairs (k, k+1), exact products, FP32 sums.

#include "decode_bf16.h"
#include "wna16_gemm.h"

namespace {

using Bits = uint16_t;  // a bf16

template <class F, int... J>
VQP_INLINE void unrolled(std::integer_sequence<int, J...>, F &&f) {
    (f(std::integral_constant<int, J>{}), ...);
}

// Calls f(Decoder) for the format of `a`; the tables subtract the middle unless xsum does.
template <class F>
VQP_INLINE void with_decoder(const Wna16 &a, F &&f) {
    const float mid = a.zeros ? 0.0f : middle(a);
    switch (a.kind == kE4M3 ? 9 : a.kind == kE5M2 ? 10 : a.bits) {
        case 2: return f(Decoder<2>(mid));
        case 3: return f(Decoder<3>(mid));
        case 4: return f(Decoder<4>(mid));
        case 5: return f(Decoder<5>(mid));
        case 6: return f(Decoder<6>(mid));
        case 7: return f(Decoder<7>(mid));
        case 8: return f(Decoder<8>(mid));
        case 9: return f(Decoder<9>(mid));
        case 10: return f(Decoder<10>(mid));
    }
}

VQP_INLINE __m512 dot(__m512 sum, __m512i w, __m512i x) { return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)x); }

VQP_INLINE __m512i pair_at(const Bits *x) {
    int32_t pair;
    std::memcpy(&pair, x, 4);
    return _mm512_set1_epi32(pair);
}

struct Bf16 {
    using Element = Bits;
    static constexpr int64_t kPanels = 4;
    static constexpr int64_t kPanelStride = 2 * kLanes;
    static constexpr int kRowBlock = 6;

    static void unpack(const Wna16 &a, int64_t panel, int64_t start, int64_t features, Bits *out) {
        const uint8_t *block = a.data + panel * a.panel_bytes() + start * a.bits * 2;
        with_decoder(a, [&](const auto &decoder) {
            Bits *to = out;
            for (int64_t b = 0; b < features / kBlock; ++b) {
                unrolled(std::make_integer_sequence<int, 16>{}, [&](auto j) __attribute__((always_inline)) {
                    _mm512_store_si512(to + j * kPanels * kPanelStride, whole_pair<j>(decoder, block));
                });
                block += 64 * decoder.kBits;
                to += 16 * kPanels * kPanelStride;
            }
        });
    }

    template <int ROWS>
    static void micro(const MicroArgs<Bits> &args) {
        const Bits *weights = args.weights;
        constexpr int64_t width = kPanels * kLanes;
        for (int64_t s = 0; s < args.segment_count; ++s) {
            const Segment segment = args.segments[s];
            const Bits *x = args.x + (segment.start - args.chunk_start);
            __m512 sum[ROWS][kPanels];
            for (int r = 0; r < ROWS; ++r) {
                for (int p = 0; p < kPanels; ++p) sum[r][p] = _mm512_setzero_ps();
            }
            for (int64_t i = 0; i < segment.len; i += 2) {
                __m512i w[kPanels];
                for (int p = 0; p < kPanels; ++p) w[p] = _mm512_load_si512(weights + p * kPanelStride);
                weights += kPanels * kPanelStride;
                for (int r = 0; r < ROWS; ++r) {
                    const __m512i xv = pair_at(x + r * args.x_stride + i);
                    for (int p = 0; p < kPanels; ++p) sum[r][p] = dot(sum[r][p], w[p], xv);
                }
            }
            for (int p = 0; p < kPanels; ++p) {
                const __m512 scale = _mm512_loadu_ps(args.scales + s * width + p * kLanes);
                __m512 zero = _mm512_setzero_ps();
                if (args.zeros) zero = _mm512_loadu_ps(args.zeros + s * width + p * kLanes);
                for (int r = 0; r < ROWS; ++r) {
                    __m512 partial = sum[r][p];
                    if (args.zeros) {
                        partial = _mm512_fnmadd_ps(zero, _mm512_set1_ps(args.xsum[r * args.xsum_stride + s]), partial);
                    }
                    float *total = args.total + r * width + p * kLanes;
                    _mm512_storeu_ps(total, _mm512_fmadd_ps(scale, partial, _mm512_loadu_ps(total)));
                }
            }
        }
    }
};

VQP_INLINE __m512 load_table(const void *p, int dtype, int64_t at) {
    switch (dtype) {
        case VQP_F32: return _mm512_loadu_ps(static_cast<const float *>(p) + at);
        case VQP_U8:
            return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(
                _mm_loadu_si128(reinterpret_cast<const __m128i *>(static_cast<const uint8_t *>(p) + at))));
        default: break;
    }
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(static_cast<const uint16_t *>(p) + at));
    if (dtype == VQP_F16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// One row. Weights stream through once; four independent sums hide the latency of vdpbf16ps.
template <class D>
void gemv_panels(const Wna16 &a, const D &decoder, int64_t panel_begin, int64_t panel_end) {
    const Bits *xp = static_cast<const Bits *>(a.xp);
    constexpr int64_t block_bytes = 64 * D::kBits;
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
        const uint8_t *data = a.data + panel * a.panel_bytes();
        __m512 total = _mm512_setzero_ps();
        for (int64_t s = 0; s < a.segment_count; ++s) {
            const Segment segment = a.segments[s];
            __m512 sum[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
            const auto pair = [&](auto j, const uint8_t *block, const Bits *x) __attribute__((always_inline)) {
                const __m512i xv = pair_at(x + 2 * j);
                sum[j % 4] = dot(sum[j % 4], decoder.template term<j, 0>(block), xv);
                if constexpr (D::kTerms == 2) {
                    sum[(j + 2) % 4] = dot(sum[(j + 2) % 4], decoder.template term<j, 1>(block), xv);
                }
            };
            const auto half = [&](auto first, int64_t at) __attribute__((always_inline)) {
                unrolled(std::make_integer_sequence<int, 8>{}, [&](auto i) __attribute__((always_inline)) {
                    constexpr int j = decltype(first)::value + i;
                    pair(std::integral_constant<int, j>{}, data + at / kBlock * block_bytes, xp + at / kBlock * kBlock);
                });
            };
            int64_t at = segment.start;
            const int64_t end = at + segment.len;
            if (at % kBlock) half(std::integral_constant<int, 8>{}, at), at += 16;
            const uint8_t *block = data + at / kBlock * block_bytes;
            for (; at + kBlock <= end; at += kBlock, block += block_bytes) {
                // Pairs i and i + 8 take their 1-bit plane from the same shifted vector.
                unrolled(std::make_integer_sequence<int, 8>{}, [&](auto i) __attribute__((always_inline)) {
                    pair(std::integral_constant<int, i>{}, block, xp + at);
                    pair(std::integral_constant<int, i + 8>{}, block, xp + at);
                });
            }
            if (at < end) half(std::integral_constant<int, 0>{}, at);
            __m512 partial = _mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3]));
            const int64_t table = (panel * a.groups + segment.group) * kLanes;
            if (a.xsum) {
                partial = _mm512_fnmadd_ps(load_table(a.zeros, a.zero_dtype, table), _mm512_set1_ps(a.xsum[s]), partial);
            }
            total = _mm512_fmadd_ps(load_table(a.scales, a.scale_dtype, table), partial, total);
        }
        alignas(64) float out[kLanes];
        _mm512_store_ps(out, total);
        finish16(a.y, a.x_dtype, 0, panel, a.n, a.bias, out);
    }
}

void gemv_bf16(const Wna16 &a, int64_t panel_begin, int64_t panel_end) {
    with_decoder(a, [&](const auto &decoder) { gemv_panels(a, decoder, panel_begin, panel_end); });
}

void prepare_bf16(const Wna16 &a, int64_t begin, int64_t end) {
    const Bits *x = static_cast<const Bits *>(a.x);
    prepare_rows<Bits>(
        a, begin, end,
        [&](int64_t at, Bits *out, int64_t count) { std::memcpy(out, x + at, static_cast<size_t>(count) * 2); },
        [&](int64_t at) { return x[at]; });
    if (a.xsum) sum_rows<Bits>(a, begin, end, [](Bits b) { return from_bf16(b); });
}

}  // namespace

const vqp::Wna16Kernels vqp::wna16_avx512_bf16 = {sizeof(Bits), false,          Bf16::kPanels, prepare_bf16,
                                                  gemv_bf16,    gemm_scratch<Bf16>, gemm<Bf16>};
