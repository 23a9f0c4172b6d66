// Tiles of codes to the packed planes of vllm_quant_kernels/cpu/layout.py.
//
//   tile  codes[feature][lane], one byte each: the 32 features of a block, the 16 channels of a panel
//
// Wherever codes come from (bytes, words of a checkpoint), they become tiles; pack_panels does the rest.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "common.h"
#include "parallel.h"

namespace vqp {

constexpr int64_t kStrip = 64;          // panels filled together: their words are neighbours, so memory is read in runs
constexpr int64_t kStripColumns = 128;  // input features of a strip that are filled at a time
constexpr int64_t kStripBytes = 1 << 20;  // that a piece of a strip may take: it stays in the cache

// Bytes between the panels of a strip: a line more than their codes, as panels a power of two apart would share cache sets.
inline int64_t panel_stride(int64_t features) { return features * kLanes + 64; }

// Sixteen lanes; GCC and Clang split them for whatever the target has.
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));

inline void load_codes(const uint8_t *row, Halves &codes) {
    Bytes bytes;
    std::memcpy(&bytes, row, sizeof bytes);
    codes = __builtin_convertvector(bytes, Halves);
}

// The plane of WIDTH bits from bit `shift` of the codes. A place of the layout is (vector, bit of the 16-bit word).
template <int WIDTH>
inline uint8_t *pack_plane(const uint8_t *const *rows, int shift, uint8_t *out) {
    constexpr int kPerWord = 16 / WIDTH;
    constexpr uint16_t kMask = (1u << WIDTH) - 1;
    Halves last[2];  // of a width of 3: the pair that is spread over the top bits of all three vectors
    if (WIDTH == 3) {
        for (int half = 0; half < 2; ++half) load_codes(rows[30 + half], last[half]);
    }
    for (int vector = 0; vector < WIDTH; ++vector, out += 64) {
        Halves words[2] = {};
#pragma GCC unroll 16
        for (int t = 0; t < kPerWord; ++t) {
            const int pair = vector * kPerWord + t, bit = WIDTH == 1 ? t % 8 * 2 + t / 8 : WIDTH * t;
            for (int half = 0; half < 2; ++half) {
                Halves codes;
                load_codes(rows[2 * pair + half], codes);
                words[half] |= ((codes >> shift) & kMask) << bit;
            }
        }
        if (WIDTH == 3) {
            for (int half = 0; half < 2; ++half) words[half] |= (last[half] >> (shift + vector) & 1) << 15;
        }
        uint16_t pairs[2 * kLanes];
        for (int l = 0; l < kLanes; ++l) {
            pairs[2 * l] = words[0][l];
            pairs[2 * l + 1] = words[1][l];
        }
        std::memcpy(out, pairs, sizeof pairs);
    }
    return out;
}

// One block: 32 rows of 16 codes to 64 * bits bytes.
inline void pack_tile(const uint8_t *const *rows, int bits, uint8_t *out) {
    switch (bits) {
        case 2: pack_plane<2>(rows, 0, out); break;
        case 3: pack_plane<3>(rows, 0, out); break;
        case 4: pack_plane<4>(rows, 0, out); break;
        case 5: pack_plane<1>(rows, 4, pack_plane<4>(rows, 0, out)); break;
        case 6: pack_plane<2>(rows, 4, pack_plane<4>(rows, 0, out)); break;
        case 7: pack_plane<1>(rows, 6, pack_plane<2>(rows, 4, pack_plane<4>(rows, 0, out))); break;
        case 8: pack_plane<8>(rows, 0, out); break;
    }
}

// Calls body(first panel, panels, first feature, features, scratch) for strips of all panels, cut into pieces of at most
// `chunk` features; scratch holds the codes of such a piece and belongs to one thread.
template <class Body>
int for_strips(int64_t panels, int64_t k, int64_t chunk, int threads, const Body &body) {
    chunk = std::min(chunk, k);
    const int64_t most = std::min({kStrip, kStripBytes / panel_stride(chunk), panels / (2 * threads)});
    const int64_t strip = std::max<int64_t>(1, most);
    const int64_t strip_bytes = strip * panel_stride(chunk);
    uint8_t *scratch = static_cast<uint8_t *>(std::malloc(static_cast<size_t>(strip_bytes * threads)));
    if (!scratch) return VQP_EMEMORY;
    parallel_for(threads, (panels + strip - 1) / strip, [&](int64_t task, int slot) {
        const int64_t first = task * strip, count = std::min(strip, panels - first);
        for (int64_t from = 0; from < k; from += chunk) {
            body(first, count, from, std::min(chunk, k - from), scratch + slot * strip_bytes);
        }
    });
    std::free(scratch);
    return VQP_OK;
}

// Codes (n, k) of a source to the planes `out` of n rounded up to 16 channels and kp columns, as vqp_pack describes.
//
// fill(first panel, panels, first feature, features, to) writes to[panel][feature][lane], panels panel_stride apart; channels from n on
// are zero.
template <class Fill>
int pack_panels(int64_t n, int64_t k, int bits, const int32_t *columns, int64_t kp, uint8_t *out, int threads,
                const Fill &fill) {
    if (bits < 2 || bits > 8 || n <= 0 || k <= 0 || kp < k || kp % kBlock) return VQP_ELAYOUT;
    for (int64_t i = 0; columns && i < kp; ++i) {
        if (columns[i] < -1 || columns[i] >= k) return VQP_EPERM;
    }
    static const uint8_t zero[kLanes] = {};
    // With columns from anywhere a strip is filled over its whole length at once.
    return for_strips((n + kLanes - 1) / kLanes, k, columns ? k : kStripColumns, std::max(threads, 1),
                      [&](int64_t first, int64_t count, int64_t from, int64_t features, uint8_t *codes) {
        fill(first, count, from, features, codes);
        const int64_t stop = from + features == k ? kp : from + features;
        for (int64_t panel = 0; panel < count; ++panel) {
            const uint8_t *in = codes + panel * panel_stride(features);
            uint8_t *block = out + ((first + panel) * kp + from) * bits * 2;
            for (int64_t start = from; start < stop; start += kBlock, block += 64 * bits) {
                const uint8_t *rows[kBlock];
                for (int64_t i = 0; i < kBlock; ++i) {
                    const int64_t column = columns ? columns[start + i] : start + i < k ? start + i - from : -1;
                    rows[i] = column < 0 ? zero : in + column * kLanes;
                }
                pack_tile(rows, bits, block);
            }
        }
    });
}

}  // namespace vqp
