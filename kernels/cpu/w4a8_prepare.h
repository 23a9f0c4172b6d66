// Activations for w4a8.h: INT8 with one scale per row and segment, in the order of the unpacked codes.
#pragma once

#include "quantize.h"

namespace {

// The pairs of input features (2 * pair, 2 * pair + 1) that quad Q of a block holds: bytes 0 and 2 the
// first, bytes 1 and 3 the second. Quads 0 to 3 lie in the first half of the block.
constexpr int first_pair(int bits, int q) { return bits == 3 ? 2 * q : bits == 2 ? q / 4 * 8 + q % 4 : q / 2 * 4 + q % 2; }
constexpr int second_pair(int bits, int q) { return first_pair(bits, q) + (bits == 3 ? 1 : bits == 2 ? 4 : 2); }

// One segment of a row: x to q, with its scale and the sum of q. NaN and infinity make the scale NaN.
VQP_INLINE void quantize_segment(const float *x, int64_t len, int8_t *q, float *scale, float *sum) {
    float top[kLanes] = {}, poison[kLanes] = {};
    for (int64_t i = 0; i < len; i += kLanes) {
        for (int l = 0; l < kLanes; ++l) {
            const float size = as_float(as_bits(x[i + l]) & 0x7FFFFFFF);
            top[l] = size > top[l] ? size : top[l];
            poison[l] += size * 0.0f;
        }
    }
    float most = 0, nothing = 0;
    for (int l = 0; l < kLanes; ++l) {
        most = top[l] > most ? top[l] : most;
        nothing += poison[l];
    }
    const float step = most / 127.0f;
    const float divisor = step > 0 ? step : 1.0f;
    int32_t total = 0;
    for (int64_t i = 0; i < len; ++i) {
        const int32_t code = static_cast<int32_t>(round_even(clamp(x[i] / divisor, -127.0f, 127.0f)));
        q[i] = static_cast<int8_t>(code);
        total += code;
    }
    *scale = divisor + nothing;
    *sum = static_cast<float>(total);
}

static void prepare_a8(const Wna16 &a, int64_t begin, int64_t end) {
    int8_t *xq = static_cast<int8_t *>(a.xp);
    uint8_t order[kBlock];  // of the features of a block
    for (int i = 0; i < kBlock; ++i) {
        order[i] = static_cast<uint8_t>(2 * (i % 2 ? second_pair(a.bits, i / 4) : first_pair(a.bits, i / 4)) + i % 4 / 2);
    }
    for (int64_t row = begin; row < end; ++row) {
        for (int64_t chunk = 0; chunk < a.chunks(); ++chunk) {
            const int64_t start = chunk * kChunk, features = least(kChunk, a.kp - start);
            float x[kChunk];
            int8_t q[kChunk];
            if (a.perm) {
                for (int64_t i = 0; i < features; ++i) {
                    const int32_t column = a.perm[start + i];
                    x[i] = column < 0 ? 0.0f : load_element(a.x, a.x_dtype, row * a.k + column);
                }
            } else {
                const int64_t real = least(features, a.k - start), at = row * a.k + start;
                int64_t i = 0;
                for (; i + kLanes <= real; i += kLanes) load16(a.x, a.x_dtype, at + i, x + i);
                for (; i < real; ++i) x[i] = load_element(a.x, a.x_dtype, at + i);
                for (; i < features; ++i) x[i] = 0.0f;
            }
            for (int64_t s = a.chunk_segments[chunk]; s < a.chunk_segments[chunk + 1]; ++s) {
                const int64_t from = a.segments[s].start - start, table = row * a.segment_count + s;
                quantize_segment(x + from, a.segments[s].len, q + from, a.x_scale + table, a.xsum + table);
            }
            int8_t *out = xq + start * a.m + row * kChunk;
            for (int64_t b = 0; b < features; b += kBlock) {
                for (int i = 0; i < kBlock; ++i) out[b + i] = q[b + order[i]];
            }
        }
    }
}

}  // namespace
