// Integer weights of 2 to 7 bits times activations quantized to INT8, one scale per row and segment.
//
//   x[row][k] ~ q * x_scale[row][segment]       |q| <= 127
//   y = sum over segments of  w_scale * x_scale * (sum of code * q - zero * sum of q)
//
// A few rows are multiplied directly from the stream of codes; more rows use the tiles of wna16_gemm.h. Codes are unpacked
// to quads: one byte for each of four input features in a 32-bit lane. The features of a quad are those that one shift and
// one mask extract; activations are stored in the same order. Accumulators of a segment, at most 128 features, are exact
// in int32 and in FP32.
//
// The ISA unit that includes this file sets VQP_WIDTH and defines dot4 and the kernels.
#pragma once

#include "w4a8_prepare.h"
#include "vectors.h"
#include "wna16_gemm.h"

namespace {

// sum + the four products of unsigned bytes of w (at most 127) and signed bytes of x, per lane.
VQP_INLINE vi dot4(vi sum, vu w, vi x);

// Pair J of the plane of width WIDTH, one field per 16-bit word.
template <int WIDTH, int J>
VQP_INLINE vu words(const uint8_t *plane, int part) {
    const auto vector = [&](int i) __attribute__((always_inline)) { return load<vu>(plane + i * 64 + part * kWidth * 4); };
    constexpr uint32_t mask = ((1u << WIDTH) - 1) * 0x10001u;
    if constexpr (WIDTH == 1) return vector(0) >> (J % 8 * 2 + J / 8) & mask;
    if constexpr (WIDTH == 3 && J == 15) {
        return (vector(0) >> 15 & 0x10001u) | (vector(1) >> 14 & 0x20002u) | (vector(2) >> 13 & 0x40004u);
    }
    constexpr int per_word = 16 / WIDTH;
    return vector(J / per_word) >> (J % per_word * WIDTH) & mask;
}

// Quad Q of the plane of width WIDTH, in the order of codes of BITS bits.
template <int BITS, int WIDTH, int Q>
VQP_INLINE vu quad_of(const uint8_t *plane, int part) {
    constexpr int first = first_pair(BITS, Q), second = second_pair(BITS, Q);
    if constexpr (BITS == WIDTH && WIDTH != 3) {  // the two fields lie eight bits apart
        constexpr int per_word = 16 / WIDTH;
        const vu v = load<vu>(plane + first / per_word * 64 + part * kWidth * 4);
        return v >> (first % per_word * WIDTH) & ((1u << WIDTH) - 1) * 0x01010101u;
    } else if constexpr (WIDTH == 4) {
        return quad_of<4, 4, Q>(plane, part);
    } else {
        return words<WIDTH, first>(plane, part) | words<WIDTH, second>(plane, part) << 8;
    }
}

template <int BITS, int Q>
VQP_INLINE vu quad(const uint8_t *block, int part) {
    if constexpr (BITS <= 4) return quad_of<BITS, BITS, Q>(block, part);
    vu codes = quad_of<BITS, 4, Q>(block, part);
    if constexpr (BITS == 5) return codes | quad_of<BITS, 1, Q>(block + 256, part) << 4;
    codes |= quad_of<BITS, 2, Q>(block + 256, part) << 4;
    if constexpr (BITS == 7) codes |= quad_of<BITS, 1, Q>(block + 384, part) << 6;
    return codes;
}

struct A8 {
    using Element = int8_t;
    static constexpr int64_t kPanels = kWidth == 16 ? 4 : 1;
    static constexpr int64_t kPanelStride = 4 * kLanes;
    static constexpr int kRowBlock = kWidth == 16 ? 6 : kWidth == 8 ? 4 : 2, kRowUnit = 1;
    static constexpr int kVectors = kPanels * kParts;

    template <int BITS>
    static void unpack_bits(const uint8_t *block, int64_t blocks, int8_t *out) {
        for (int64_t b = 0; b < blocks; ++b, block += 64 * BITS, out += 8 * kPanels * kPanelStride) {
            unrolled(std::make_integer_sequence<int, 8>{}, [&](auto q) __attribute__((always_inline)) {
                for (int part = 0; part < kParts; ++part) {
                    store(out + q * kPanels * kPanelStride + part * kWidth * 4, quad<BITS, q>(block, part));
                }
            });
        }
    }

    static void unpack(const Wna16 &a, int64_t panel, int64_t start, int64_t features, int8_t *out) {
        const uint8_t *block = a.data + panel * a.panel_bytes() + start * a.bits * 2;
        const int64_t blocks = features / kBlock;
        switch (a.bits) {
            case 2: return unpack_bits<2>(block, blocks, out);
            case 3: return unpack_bits<3>(block, blocks, out);
            case 4: return unpack_bits<4>(block, blocks, out);
            case 5: return unpack_bits<5>(block, blocks, out);
            case 6: return unpack_bits<6>(block, blocks, out);
            case 7: return unpack_bits<7>(block, blocks, out);
        }
    }

    template <int ROWS>
    static void micro(const MicroArgs<int8_t> &args) {
        const int8_t *weights = args.weights;
        for (int64_t s = 0; s < args.segment_count; ++s) {
            const Segment segment = args.segments[s];
            const int8_t *x = args.x + (segment.start - args.chunk_start);
            vi sum[ROWS][kVectors] = {};
            for (int64_t i = 0; i < segment.len; i += 4) {
                vu w[kVectors];
                for (int v = 0; v < kVectors; ++v) w[v] = load<vu>(weights + v * kWidth * 4);
                weights += kVectors * kWidth * 4;
                for (int r = 0; r < ROWS; ++r) {
                    int32_t four;
                    std::memcpy(&four, x + r * kChunk + i, 4);
                    const vi xv = vi{} + four;
                    for (int v = 0; v < kVectors; ++v) sum[r][v] = dot4(sum[r][v], w[v], xv);
                }
            }
            const int64_t table = s * kPanels * kLanes;
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) {
                const vf scale = load<vf>(args.scales + table + v * kWidth), zero = load<vf>(args.zeros + table + v * kWidth);
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; ++r) {
                    const vf exact = __builtin_convertvector(sum[r][v], vf) - zero * args.xsum[r * args.xsum_stride + s];
                    float *total = args.total + r * kPanels * kLanes + v * kWidth;
                    store(total, load<vf>(total) + scale * args.x_scale[r * args.xsum_stride + s] * exact);
                }
            }
        }
    }
};

// The most rows that are multiplied directly from the packed codes, and the prefetch distance of those, in bytes.
constexpr int kFewRows = kWidth == 16 ? 8 : 1;
constexpr int kAhead = 3072;

// Quads FIRST to END of the blocks from `block` on, times ROWS rows of x.
template <int BITS, int FIRST, int END, int ROWS, int CHAINS>
VQP_INLINE void dot_quads(const uint8_t *block, const int8_t *x, int64_t blocks, vi (&sum)[kParts][ROWS][CHAINS]) {
    for (int64_t b = 0; b < blocks; ++b, block += 64 * BITS, x += kBlock) {
        if constexpr (ROWS > 1) {
            for (int i = 0; i < BITS; ++i) __builtin_prefetch(block + kAhead + 64 * i);
        }
        unrolled(std::make_integer_sequence<int, END - FIRST>{}, [&](auto i) __attribute__((always_inline)) {
            constexpr int q = FIRST + i;
            for (int part = 0; part < kParts; ++part) {
                const vu w = quad<BITS, q>(block, part);
                for (int r = 0; r < ROWS; ++r) {
                    int32_t four;
                    std::memcpy(&four, x + r * kChunk + 4 * q, 4);
                    sum[part][r][q % CHAINS] = dot4(sum[part][r][q % CHAINS], w, vi{} + four);
                }
            }
        });
    }
}

// Panels [begin, end): each code is loaded once and used from registers. Rows beyond a.m are read, as the caller provides
// room for eight, and their results are dropped.
template <int BITS, int ROWS>
void few_rows_bits(const Wna16 &a, int64_t begin, int64_t end) {
    constexpr int chains = ROWS == 1 ? 4 : ROWS == 4 ? 2 : 1;
    for (int64_t panel = begin; panel < end; ++panel) {
        const uint8_t *data = a.data + panel * a.panel_bytes();
        alignas(64) float total[ROWS * kLanes] = {}, scale[kLanes], zero[kLanes];
        for (int l = 0; l < kLanes; ++l) zero[l] = middle(a);
        for (int64_t s = 0; s < a.segment_count; ++s) {
            const Segment segment = a.segments[s];
            const int64_t chunk = segment.start / kChunk * kChunk, stop = segment.start + segment.len;
            const int8_t *x = static_cast<const int8_t *>(a.xp) + chunk * a.m - chunk;
            const auto block = [&](int64_t b) { return data + b * 64 * BITS; };
            const int64_t first = (segment.start + 16) / kBlock, last = stop / kBlock;
            vi sum[kParts][ROWS][chains] = {};
            if (segment.start % kBlock) {
                dot_quads<BITS, 4, 8>(block(first - 1), x + (first - 1) * kBlock, 1, sum);
            }
            dot_quads<BITS, 0, 8>(block(first), x + first * kBlock, last - first, sum);
            if (stop % kBlock) dot_quads<BITS, 0, 4>(block(last), x + last * kBlock, 1, sum);
            const int64_t table = (panel * a.groups + segment.group) * kLanes;
            load16(a.scales, a.scale_dtype, table, scale);
            if (a.zeros) load16(a.zeros, a.zero_dtype, table, zero);
            for (int part = 0; part < kParts; ++part) {
                const vf sv = load<vf>(scale + part * kWidth), zv = load<vf>(zero + part * kWidth);
                for (int r = 0; r < ROWS; ++r) {
                    if (r < a.m) {
                        vi exact = sum[part][r][0];
                        for (int c = 1; c < chains; ++c) exact += sum[part][r][c];
                        const int64_t at = r * a.segment_count + s;
                        float *to = total + r * kLanes + part * kWidth;
                        const vf v = __builtin_convertvector(exact, vf) - zv * a.xsum[at];
                        store(to, load<vf>(to) + sv * a.x_scale[at] * v);
                    }
                }
            }
        }
        for (int64_t r = 0; r < a.m; ++r) finish16(a.y, a.x_dtype, r, panel, a.n, a.bias, total + r * kLanes);
    }
}

template <int BITS>
void few_rows_of(const Wna16 &a, int64_t begin, int64_t end) {
    if (a.m == 1) return few_rows_bits<BITS, 1>(a, begin, end);
    if constexpr (kFewRows > 1) {
        if (a.m <= 4) return few_rows_bits<BITS, 4>(a, begin, end);
        few_rows_bits<BITS, 8>(a, begin, end);
    }
}

static void few_rows_a8(const Wna16 &a, int64_t begin, int64_t end) {
    switch (a.bits) {
        case 2: return few_rows_of<2>(a, begin, end);
        case 3: return few_rows_of<3>(a, begin, end);
        case 4: return few_rows_of<4>(a, begin, end);
        case 5: return few_rows_of<5>(a, begin, end);
        case 6: return few_rows_of<6>(a, begin, end);
        case 7: return few_rows_of<7>(a, begin, end);
    }
}

}  // namespace

#define VQP_W4A8_KERNELS \
    { sizeof(int8_t), true, A8::kPanels, kFewRows, 8, prepare_a8, few_rows_a8, gemm_scratch<A8>, gemm<A8> }
