// Types shared by the baseline code and the per-ISA translation units.
//
// Invariant: a header included by an ISA unit defines no function with external linkage. Such a
// unit is compiled with -mavx512f and the like; a shared inline function would be merged by the
// linker and could carry those instructions into code that runs on older CPUs.
#pragma once

#include <cstddef>
#include <cstdint>

#include "vqp_cpu.h"

namespace vqp {

constexpr int kLanes = 16;   // output channels per panel
constexpr int kBlock = 32;   // input features per block of planes
constexpr int kChunk = 128;  // input features dequantized at a time; no segment crosses a chunk
constexpr int kRows = 512;   // rows of x per pass

enum Kind : int { kInt = 0, kE4M3 = 1, kE5M2 = 2 };

// Input features [start, start + len) of one chunk that share a scale. Multiples of 16.
struct Segment {
    int32_t start, len, group;
};

// One weight-only GEMM over at most kRows rows.
struct Wna16 {
    const void *x;
    int x_dtype;
    void *y;
    int64_t m, n, k, kp;
    const uint8_t *data;
    const void *scales;
    int scale_dtype;
    const void *zeros;
    int zero_dtype;
    const int32_t *perm;
    const float *bias;
    int kind, bits;
    int64_t groups;
    const Segment *segments;
    int64_t segment_count;
    const int64_t *chunk_segments;  // first segment of each chunk, and the end
    void *xp;                       // prepared x: [chunk][m][kChunk], float or bf16; past kp unset
    float *xsum;                    // [m][segment_count], sums of x; null where no zero point needs it
    float *x_scale;                 // [m][segment_count], where x was quantized to INT8

    int64_t panels() const { return (n + kLanes - 1) / kLanes; }
    int64_t panel_bytes() const { return kp * bits * 2; }
    int64_t chunks() const { return (kp + kChunk - 1) / kChunk; }
};

// One W8A8 GEMM over at most kRows rows.
struct W8a8 {
    const void *x;
    int x_dtype;
    void *y;
    int64_t m, n, k, kp;
    const int8_t *data;
    const float *w_scale;
    const int32_t *w_sum;
    const float *bias;
    const float *in_scale;
    const int32_t *in_zero;
    bool symmetric;
    void *xq;        // prepared x: [chunk][m][features of the chunk], u8 (offset 128) or int16
    float *x_scale;  // [m]
    int32_t *x_zero;  // [m], including the offset of xq

    int64_t panels() const { return (n + kLanes - 1) / kLanes; }
};

// Kernels for one kind of prepared activation: float, bf16, or INT8 with a scale per segment.
struct Wna16Kernels {
    int element_size;     // bytes of one prepared activation: 4 float, 2 bf16, 1 INT8
    bool explicit_zeros;  // symmetric weights need xsum too
    int64_t group_panels;  // panels that a tile is a multiple of
    int64_t few;           // the most rows for few_rows; 0 where there is none
    int64_t spare_rows;    // of prepared x past the last row: read, and their results dropped
    void (*prepare)(const Wna16 &, int64_t row_begin, int64_t row_end);
    void (*few_rows)(const Wna16 &, int64_t panel_begin, int64_t panel_end);
    size_t (*gemm_scratch)(int64_t rows, int64_t panels);  // bytes for one gemm call
    void (*gemm)(const Wna16 &, int64_t panel_begin, int64_t panel_end, void *scratch);
};

struct W8a8Kernels {
    int element_size;  // bytes of one prepared activation
    int64_t group_panels;
    int64_t spare_rows;
    void (*prepare)(const W8a8 &, int64_t row_begin, int64_t row_end);
    size_t (*gemm_scratch)(int64_t rows, int64_t panels);
    void (*gemm)(const W8a8 &, int64_t panel_begin, int64_t panel_end, void *scratch);
};

extern const Wna16Kernels wna16_scalar, wna16_avx2, wna16_avx512, wna16_avx512_bf16, wna16_amx;
extern const Wna16Kernels w4a8_scalar, w4a8_avx2, w4a8_avx512, w4a8_avx512_vnni;
extern const W8a8Kernels w8a8_scalar, w8a8_avx2, w8a8_avx512, w8a8_avx512_vnni, w8a8_amx;

}  // namespace vqp
