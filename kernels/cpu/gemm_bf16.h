// The tiled GEMM with bf16 activations: codes decoded to pairs of bf16, 6 x 4 sums by vdpbf16ps.
#pragma once

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
    static constexpr int kRowBlock = 6, kRowUnit = 1;

    static void unpack(const Wna16 &a, int64_t panel, int64_t start, int64_t features, Bits *out) {
        const uint8_t *block = a.data + panel * a.panel_bytes() + start * a.bits * 2;
        with_decoder(a, [&](const auto &decoder) {
            Bits *to = out;
            for (int64_t b = 0; b < features / kBlock; ++b) {
                const Block<decoder.kBits> vectors(block);
                unrolled(std::make_integer_sequence<int, 16>{}, [&](auto j) __attribute__((always_inline)) {
                    _mm512_store_si512(to + j * kPanels * kPanelStride, whole_pair<j>(decoder, vectors));
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
            const int64_t skipped = segment.start - args.chunk_start;
            const Bits *x = args.x + skipped, *ahead = args.ahead + ROWS * skipped;
            __m512 sum[ROWS][kPanels];
            for (int r = 0; r < ROWS; ++r) {
                for (int p = 0; p < kPanels; ++p) sum[r][p] = _mm512_setzero_ps();
            }
            for (int64_t i = 0; i < segment.len; i += 2) {
                __m512i w[kPanels];
                for (int p = 0; p < kPanels; ++p) w[p] = _mm512_load_si512(weights + p * kPanelStride);
                weights += kPanels * kPanelStride;
                _mm_prefetch(reinterpret_cast<const char *>(ahead + i * ROWS), _MM_HINT_T1);
                for (int r = 0; r < ROWS; ++r) {
                    const __m512i xv = pair_at(x + r * kChunk + i);
                    for (int p = 0; p < kPanels; ++p) sum[r][p] = dot(sum[r][p], w[p], xv);
                }
            }
#pragma GCC unroll 8
            for (int p = 0; p < kPanels; ++p) {
                const __m512 scale = _mm512_loadu_ps(args.scales + s * width + p * kLanes);
                __m512 zero = _mm512_setzero_ps();
                if (args.zeros) zero = _mm512_loadu_ps(args.zeros + s * width + p * kLanes);
#pragma GCC unroll 8
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

void prepare_bf16(const Wna16 &a, int64_t begin, int64_t end) {
    const Bits *x = static_cast<const Bits *>(a.x);
    prepare_rows<Bits>(
        a, begin, end,
        [&](int64_t at, Bits *out, int64_t count) { std::memcpy(out, x + at, static_cast<size_t>(count) * 2); },
        [&](int64_t at) { return x[at]; });
    if (a.xsum) sum_rows<Bits>(a, begin, end, [](Bits b) { return from_bf16(b); });
}

}  // namespace
