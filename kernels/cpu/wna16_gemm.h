// The tiled weight-only GEMM, m >= 1: shared by the float, the bf16 and the INT8 kernels.
//
//   for each chunk of 128 input features
//     for each group of K::kPanels panels in the tile
//       unpack the codes of the chunk once into `weights` (L1)
//       for each block of K::kRowBlock rows
//         for each segment: partial sums in registers; total += scale * (partial - zero * xsum)
//
// Every element of y is summed by one thread in one fixed order, whatever the tile or the number of
// threads: results are bitwise reproducible.
//
// The ISA unit provides K: Element, kPanels, kPanelStride, unpack(), and micro<ROWS>() for blocks of 1 to
// kRowBlock rows; or, where rows come in units of kRowUnit > 1, multiply(rows), which may read the rows that
// fill up the last unit.
#pragma once

#include "lanes.h"

namespace {

// What one micro-kernel call reads and writes. Strides are in elements.
template <class Element>
struct MicroArgs {
    const Element *weights;  // [feature or pair of features][panels of the group][lanes]
    const Element *x;        // [row][kChunk]
    const Element *ahead;  // the same rows of the next chunk, to be prefetched
    const Segment *segments;
    int64_t segment_count;
    int64_t chunk_start;
    const float *scales, *zeros;  // [segment][panels * 16]; zeros null where there are none
    const float *xsum;            // [row][segment], first segment of the chunk
    const float *x_scale;         // [row][segment], of INT8 activations
    int64_t xsum_stride;
    float *total;  // [row][panels * 16]
};

// Prefetches [p, p + bytes) into L2.
VQP_INLINE void prefetch(const void *p, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char *>(p) + i, 0, 2);
}

template <class K>
size_t gemm_scratch(int64_t rows, int64_t panels) {
    const int64_t groups = (panels + K::kPanels - 1) / K::kPanels;
    const size_t weights = static_cast<size_t>(kChunk) * K::kPanels * kLanes * sizeof(typename K::Element);
    const size_t tables = 2 * static_cast<size_t>(kChunk / 16) * K::kPanels * kLanes * sizeof(float);
    return weights + tables + static_cast<size_t>(groups * K::kPanels * kLanes * rows) * sizeof(float);
}

// The zero point that a symmetric weight implies.
VQP_INLINE float middle(const Wna16 &a) { return a.kind == kInt ? static_cast<float>(1 << (a.bits - 1)) : 0.0f; }

template <class K, int ROWS>
VQP_INLINE void micro_dispatch(int64_t rows, const MicroArgs<typename K::Element> &args) {
    if constexpr (ROWS > 0) {
        if (rows == ROWS) {
            K::template micro<ROWS>(args);
        } else {
            micro_dispatch<K, ROWS - 1>(rows, args);
        }
    }
}

template <class K>
void gemm(const Wna16 &a, int64_t panel_begin, int64_t panel_end, void *scratch) {
    using Element = typename K::Element;
    constexpr int64_t width = K::kPanels * kLanes;
    Element *weights = static_cast<Element *>(scratch);
    float *scales = reinterpret_cast<float *>(weights + kChunk * width);
    float *zeros = scales + kChunk / 16 * width;
    float *totals = zeros + kChunk / 16 * width;
    const int64_t tile_groups = (panel_end - panel_begin + K::kPanels - 1) / K::kPanels;
    std::memset(weights, 0, kChunk * static_cast<size_t>(width) * sizeof(Element));
    std::memset(totals, 0, static_cast<size_t>(tile_groups * a.m * width) * sizeof(float));
    const Element *xp = static_cast<const Element *>(a.xp);

    for (int64_t chunk = 0; chunk < a.chunks(); ++chunk) {
        const int64_t start = chunk * kChunk, features = least(kChunk, a.kp - start);
        const int64_t first = a.chunk_segments[chunk], count = a.chunk_segments[chunk + 1] - first;
        for (int64_t g = 0; g < tile_groups; ++g) {
            const int64_t panel0 = panel_begin + g * K::kPanels;
            const int64_t present = least(K::kPanels, panel_end - panel0);
            for (int64_t p = 0; p < present; ++p) {
                K::unpack(a, panel0 + p, start, features, weights + p * K::kPanelStride);
                for (int64_t s = 0; s < count; ++s) {
                    const int64_t at = ((panel0 + p) * a.groups + a.segments[first + s].group) * kLanes;
                    load16(a.scales, a.scale_dtype, at, scales + s * width + p * kLanes);
                    if (a.zeros) load16(a.zeros, a.zero_dtype, at, zeros + s * width + p * kLanes);
                }
            }
            if (a.xsum && !a.zeros) {
                for (int64_t i = 0; i < count * width; ++i) zeros[i] = middle(a);
            }
            // Prefetch the next chunk's weights into L2 while this one is multiplied; the micro-kernels prefetch its x.
            const int64_t next = start + kChunk, next_features = least(kChunk, a.kp - next);
            if (next_features > 0) {
                for (int64_t p = 0; p < present; ++p) {
                    prefetch(a.data + (panel0 + p) * a.panel_bytes() + next * a.bits * 2, next_features * a.bits * 2);
                }
            }
            const int64_t blocks = (a.m + K::kRowBlock - 1) / K::kRowBlock;
            for (int64_t b = 0; b < blocks; ++b) {
                const auto [row, rows] = row_block<K::kRowUnit>(a.m, b, blocks);
                const Element *x = xp + start * a.m + row * kChunk;
                const MicroArgs<Element> args{weights,
                                              x,
                                              g == 0 && next_features > 0 ? x + a.m * kChunk : x,
                                              a.segments + first,
                                              count,
                                              start,
                                              scales,
                                              a.xsum ? zeros : nullptr,
                                              a.xsum ? a.xsum + row * a.segment_count + first : nullptr,
                                              a.x_scale ? a.x_scale + row * a.segment_count + first : nullptr,
                                              a.segment_count,
                                              totals + (g * a.m + row) * width};
                if constexpr (K::kRowUnit > 1) {
                    K::multiply(rows, args);
                } else {
                    micro_dispatch<K, K::kRowBlock>(rows, args);
                }
            }
        }
    }
    for (int64_t row = 0; row < a.m; ++row) {
        prefetch_row(a.y, a.x_dtype, row + 8, a.m, a.n, panel_begin, panel_end);
        for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
            const int64_t g = (panel - panel_begin) / K::kPanels, p = (panel - panel_begin) % K::kPanels;
            finish16(a.y, a.x_dtype, row, panel, a.n, a.bias, totals + (g * a.m + row) * width + p * kLanes);
        }
    }
}

// Rows of x into chunk order, permuted and zero-padded; `convert` writes the elements of one chunk
// from contiguous columns, `element` one element.
template <class Element, class Convert, class One>
VQP_INLINE void prepare_rows(const Wna16 &a, int64_t begin, int64_t end, Convert convert, One element) {
    Element *xp = static_cast<Element *>(a.xp);
    for (int64_t row = begin; row < end; ++row) {
        for (int64_t start = 0; start < a.kp; start += kChunk) {
            const int64_t features = least(kChunk, a.kp - start);
            Element *out = xp + start * a.m + row * kChunk;
            if (a.perm) {
                for (int64_t i = 0; i < features; ++i) {
                    const int32_t column = a.perm[start + i];
                    out[i] = column < 0 ? Element(0) : element(row * a.k + column);
                }
            } else {
                const int64_t real = least(features, a.k - start);
                convert(row * a.k + start, out, real);
                for (int64_t i = real; i < features; ++i) out[i] = Element(0);
            }
        }
    }
}

// xsum of the rows, from prepared x. `wide` makes a float of an element.
template <class Element, class Wide>
VQP_INLINE void sum_rows(const Wna16 &a, int64_t begin, int64_t end, Wide wide) {
    const Element *xp = static_cast<const Element *>(a.xp);
    for (int64_t row = begin; row < end; ++row) {
        for (int64_t s = 0; s < a.segment_count; ++s) {
            const Segment &segment = a.segments[s];
            const int64_t start = segment.start / kChunk * kChunk;
            const Element *x = xp + start * a.m + row * kChunk + (segment.start - start);
            float part[kLanes] = {};
            for (int64_t i = 0; i < segment.len; i += kLanes) {
                for (int l = 0; l < kLanes; ++l) part[l] += wide(x[i + l]);
            }
            for (int step = kLanes / 2; step > 0; step /= 2) {
                for (int l = 0; l < step; ++l) part[l] += part[l + step];
            }
            a.xsum[row * a.segment_count + s] = part[0];
        }
    }
}

}  // namespace
