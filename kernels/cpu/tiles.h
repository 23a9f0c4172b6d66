// AMX tile registers: how they are configured and used, for the two AMX units.
//
//   tmm0 tmm1   sums, 16 rows x 16 channels each:  rows 0-15,  panels p and p + 1
//   tmm2 tmm3                                      rows 16-31, panels p and p + 1
//   tmm4 tmm5   x: rows 0-15 and 16-31, 64 bytes of features each
//   tmm6 tmm7   weights: 16 rows of 64 bytes, a row the 16 channels of a panel with 4 bytes of features each
//
// Every tile has 16 rows of 64 bytes: rows of x past the last one are read and their sums dropped.
#pragma once

#include <immintrin.h>

#include "lanes.h"

namespace {

constexpr int kTileRows = 16;
constexpr int kTileBytes = 64;  // of a row

// The operand of ldtilecfg (Intel SDM volume 1, "Intel AMX").
struct alignas(64) TileConfig {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
static const TileConfig kTileConfig = {
    1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

// The tile registers of this thread, configured for one task and released after it: a context switch between products
// saves no tiles, and another user of the thread finds them as a thread begins.
class Tiles {
   public:
    Tiles() { _tile_loadconfig(&kTileConfig); }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles &) = delete;
    Tiles &operator=(const Tiles &) = delete;
};

// Before tile loads: GCC's intrinsics do not say that they read memory, so stores could be moved past them.
VQP_INLINE void memory_is_read() { __asm__ volatile("" ::: "memory"); }

// The intrinsics take register numbers as literals, hence macros. HEIGHT is 1 or 2 tiles of rows.
#define VQP_ZERO_SUMS(HEIGHT)       \
    do {                            \
        _tile_zero(0);              \
        _tile_zero(1);              \
        if constexpr (HEIGHT > 1) { \
            _tile_zero(2);          \
            _tile_zero(3);          \
        }                           \
    } while (0)

// One step of 64 bytes of features: x at `x`, rows `x_stride` bytes apart, weights of two panels at `w0` and `w1`.
#define VQP_TILE_STEP(DOT, HEIGHT, x, x_stride, w0, w1, w_stride)   \
    do {                                                            \
        _tile_loadd(6, w0, w_stride);                               \
        _tile_loadd(4, x, x_stride);                                \
        DOT(0, 4, 6);                                               \
        _tile_loadd(7, w1, w_stride);                               \
        DOT(1, 4, 7);                                               \
        if constexpr (HEIGHT > 1) {                                 \
            _tile_loadd(5, (x) + kTileRows * (x_stride), x_stride); \
            DOT(2, 5, 6);                                           \
            DOT(3, 5, 7);                                           \
        }                                                           \
    } while (0)

// Sums to out[row of HEIGHT * 16][panel of 2][16 channels], four bytes each.
#define VQP_STORE_SUMS(HEIGHT, out)                                     \
    do {                                                                \
        _tile_stored(0, out, 128);                                      \
        _tile_stored(1, (out) + kLanes, 128);                           \
        if constexpr (HEIGHT > 1) {                                     \
            _tile_stored(2, (out) + 2 * kTileRows * kLanes, 128);       \
            _tile_stored(3, (out) + (2 * kTileRows + 1) * kLanes, 128); \
        }                                                               \
    } while (0)

}  // namespace
