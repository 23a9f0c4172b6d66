// The weight-only GEMM with FP32 multiply-add, for the vector width of the ISA unit that includes this file.
#pragma once

#include "vectors.h"
#include "wna16_gemm.h"

namespace {

VQP_INLINE vf splat(float f) { return vf{} + f; }

// Formats: 2 to 8 are integers of that many bits.
constexpr int kFormatE4M3 = 9, kFormatE5M2 = 10;
constexpr int format_bits(int format) { return format > 8 ? 8 : format; }

// Field of input feature KK of a block in the plane of width WIDTH.
template <int WIDTH, int KK>
VQP_INLINE vu field(const uint8_t *plane, int part) {
    constexpr int pair = KK / 2, vector = KK / (32 / WIDTH), t = KK % (32 / WIDTH) / 2;
    constexpr int shift = (WIDTH == 1 ? pair % 8 * 2 + pair / 8 : WIDTH * t) + 16 * (KK & 1);
    return (load<vu>(plane + vector * 64 + part * kWidth * 4) >> shift) & ((1u << WIDTH) - 1);
}

// The same in the plane of width 3.
template <int KK>
VQP_INLINE vu triple(const uint8_t *plane, int part) {
    constexpr int pair = KK / 2, high = 16 * (KK & 1);
    const auto vector = [&](int index) __attribute__((always_inline)) { return load<vu>(plane + index * 64 + part * kWidth * 4); };
    if constexpr (pair == 15) {
        constexpr int bit = 15 + high;
        return (vector(0) >> bit & 1) | (vector(1) >> bit & 1) << 1 | (vector(2) >> bit & 1) << 2;
    }
    return vector(pair / 5) >> (pair % 5 * 3 + high) & 7;
}

template <int FORMAT, int KK>
VQP_INLINE vu code(const uint8_t *block, int part) {
    constexpr int bits = format_bits(FORMAT);
    if constexpr (bits == 2) return field<2, KK>(block, part);
    if constexpr (bits == 3) return triple<KK>(block, part);
    if constexpr (bits == 4) return field<4, KK>(block, part);
    if constexpr (bits == 5) return field<4, KK>(block, part) | field<1, KK>(block + 256, part) << 4;
    if constexpr (bits == 6) return field<4, KK>(block, part) | field<2, KK>(block + 256, part) << 4;
    if constexpr (bits == 7) {
        return field<4, KK>(block, part) | field<2, KK>(block + 256, part) << 4 | field<1, KK>(block + 384, part) << 6;
    }
    if constexpr (bits == 8) return field<8, KK>(block, part);
}

// An FP8 code with MANTISSA bits of mantissa, exactly: the exponent is rebiased by an addition, and
// subnormals (exponent 0) come from an integer conversion.
template <int MANTISSA>
VQP_INLINE vf fp8_value(vu b) {
    constexpr uint32_t rebias = MANTISSA == 3 ? 120 : 112, fraction = (1u << MANTISSA) - 1;
    const vu normal = ((b & 0x7F) << (23 - MANTISSA)) + (rebias << 23);
    const vf tiny = __builtin_convertvector((vi)(b & fraction), vf) * as_float((rebias + 1 - MANTISSA) << 23);
    const vu is_tiny = (vu)((b & (0x7F & ~fraction)) == 0);
    return (vf)((is_tiny & (vu)tiny) | (~is_tiny & normal) | (b & 0x80) << 24);
}

template <int FORMAT, int KK>
VQP_INLINE vf value(const uint8_t *block, int part) {
    const vu c = code<FORMAT, KK>(block, part);
    if constexpr (FORMAT == kFormatE4M3) return fp8_value<3>(c);
    if constexpr (FORMAT == kFormatE5M2) return fp8_value<2>(c);
    return __builtin_convertvector((vi)c, vf);
}

// One panel per group with AVX2 registers and narrower ones; AVX-512 has room for four.
struct F32 {
    using Element = float;
    static constexpr int64_t kPanels = kWidth == 16 ? 4 : 1;
    static constexpr int64_t kPanelStride = kLanes;
    static constexpr int kRowBlock = kWidth == 4 ? 2 : 6, kRowUnit = 1;
    static constexpr int kVectors = kPanels * kParts;

    template <int FORMAT>
    static void unpack_format(const uint8_t *block, int64_t blocks, float *out) {
        for (int64_t b = 0; b < blocks; ++b, block += 64 * format_bits(FORMAT), out += kBlock * kPanels * kLanes) {
            unrolled(std::make_integer_sequence<int, kBlock>{}, [&](auto kk) __attribute__((always_inline)) {
                for (int part = 0; part < kParts; ++part) {
                    store(out + kk * kPanels * kLanes + part * kWidth, value<FORMAT, kk>(block, part));
                }
            });
        }
    }

    static void unpack(const Wna16 &a, int64_t panel, int64_t start, int64_t features, float *out);

    template <int ROWS>
    static void micro(const MicroArgs<float> &args) {
        const float *weights = args.weights;
        for (int64_t s = 0; s < args.segment_count; ++s) {
            const Segment segment = args.segments[s];
            const float *x = args.x + (segment.start - args.chunk_start);
            vf sum[ROWS][kVectors] = {};
            for (int64_t i = 0; i < segment.len; ++i) {
                vf w[kVectors];
                for (int v = 0; v < kVectors; ++v) w[v] = load<vf>(weights + v * kWidth);
                weights += kVectors * kWidth;
                for (int r = 0; r < ROWS; ++r) {
                    const vf xv = splat(x[r * kChunk + i]);
                    for (int v = 0; v < kVectors; ++v) sum[r][v] += xv * w[v];
                }
            }
            const float *scale = args.scales + s * kPanels * kLanes;
            for (int v = 0; v < kVectors; ++v) {
                const vf sv = load<vf>(scale + v * kWidth);
                const vf zv = args.zeros ? load<vf>(args.zeros + s * kPanels * kLanes + v * kWidth) : vf{};
                for (int r = 0; r < ROWS; ++r) {
                    vf partial = sum[r][v];
                    if (args.zeros) partial -= zv * args.xsum[r * args.xsum_stride + s];
                    float *total = args.total + r * kPanels * kLanes + v * kWidth;
                    store(total, load<vf>(total) + sv * partial);
                }
            }
        }
    }
};

// One row. The accumulators are independent chains, enough to hide the latency of an FMA.
template <int FORMAT>
void gemv_format(const Wna16 &a, int64_t panel_begin, int64_t panel_end) {
    constexpr int chains = kParts < 4 ? 4 / kParts : 1;
    const float *xp = static_cast<const float *>(a.xp);
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
        const uint8_t *data = a.data + panel * a.panel_bytes();
        vf total[kParts] = {};
        for (int64_t s = 0; s < a.segment_count; ++s) {
            const Segment segment = a.segments[s];
            vf sum[chains][kParts] = {};
            const auto half = [&](auto first, int64_t at) __attribute__((always_inline)) {
                const uint8_t *block = data + at / kBlock * (64 * format_bits(FORMAT));
                const float *x = xp + at / kBlock * kBlock;
                unrolled(std::make_integer_sequence<int, 16>{}, [&](auto i) __attribute__((always_inline)) {
                    constexpr int kk = decltype(first)::value + i;
                    const vf xv = splat(x[kk]);
                    for (int part = 0; part < kParts; ++part) sum[kk % chains][part] += xv * value<FORMAT, kk>(block, part);
                });
            };
            int64_t at = segment.start;
            const int64_t end = at + segment.len;
            if (at % kBlock) half(std::integral_constant<int, 16>{}, at), at += 16;
            for (; at + kBlock <= end; at += kBlock) {
                half(std::integral_constant<int, 0>{}, at);
                half(std::integral_constant<int, 16>{}, at);
            }
            if (at < end) half(std::integral_constant<int, 0>{}, at);
            alignas(64) float scale[kLanes], zero[kLanes];
            const int64_t table = (panel * a.groups + segment.group) * kLanes;
            load16(a.scales, a.scale_dtype, table, scale);
            if (a.zeros) load16(a.zeros, a.zero_dtype, table, zero);
            for (int part = 0; part < kParts; ++part) {
                vf partial = sum[0][part];
                for (int c = 1; c < chains; ++c) partial += sum[c][part];
                if (a.xsum) {
                    const vf zv = a.zeros ? load<vf>(zero + part * kWidth) : splat(middle(a));
                    partial -= zv * a.xsum[s];
                }
                total[part] += load<vf>(scale + part * kWidth) * partial;
            }
        }
        alignas(64) float out[kLanes];
        for (int part = 0; part < kParts; ++part) store(out + part * kWidth, total[part]);
        finish16(a.y, a.x_dtype, 0, panel, a.n, a.bias, out);
    }
}

// Calls f(integral_constant<int, FORMAT>) for the format of `a`.
template <class F>
VQP_INLINE void with_format(const Wna16 &a, F &&f) {
    switch (a.kind == kE4M3 ? kFormatE4M3 : a.kind == kE5M2 ? kFormatE5M2 : a.bits) {
        case 2: return f(std::integral_constant<int, 2>{});
        case 3: return f(std::integral_constant<int, 3>{});
        case 4: return f(std::integral_constant<int, 4>{});
        case 5: return f(std::integral_constant<int, 5>{});
        case 6: return f(std::integral_constant<int, 6>{});
        case 7: return f(std::integral_constant<int, 7>{});
        case 8: return f(std::integral_constant<int, 8>{});
        case kFormatE4M3: return f(std::integral_constant<int, kFormatE4M3>{});
        case kFormatE5M2: return f(std::integral_constant<int, kFormatE5M2>{});
    }
}

void F32::unpack(const Wna16 &a, int64_t panel, int64_t start, int64_t features, float *out) {
    const uint8_t *block = a.data + panel * a.panel_bytes() + start * a.bits * 2;
    with_format(a, [&](auto format) { unpack_format<format>(block, features / kBlock, out); });
}

void gemv_f32(const Wna16 &a, int64_t panel_begin, int64_t panel_end) {
    with_format(a, [&](auto format) { gemv_format<format>(a, panel_begin, panel_end); });
}

void prepare_f32(const Wna16 &a, int64_t begin, int64_t end) {
    prepare_rows<float>(
        a, begin, end,
        [&](int64_t at, float *out, int64_t count) {
            int64_t i = 0;
            for (; i + kLanes <= count; i += kLanes) load16(a.x, a.x_dtype, at + i, out + i);
            for (; i < count; ++i) out[i] = load_element(a.x, a.x_dtype, at + i);
        },
        [&](int64_t at) { return load_element(a.x, a.x_dtype, at); });
    if (a.xsum) sum_rows<float>(a, begin, end, [](float f) { return f; });
}

}  // namespace

#define VQP_WNA16_F32_KERNELS \
    { sizeof(float), true, F32::kPanels, 1, 0, prepare_f32, gemv_f32, gemm_scratch<F32>, gemm<F32> }
