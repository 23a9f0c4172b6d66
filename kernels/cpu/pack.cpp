// Codes (n, k), one byte each, to the packed planes of vllm_quant_kernels/layout.py.

#include <algorithm>
#include <cstring>

#include "common.h"
#include "parallel.h"

using namespace vqp;

namespace {

struct Place {
    int vector, bit, taken, low;  // vector of the plane, bit of the word, bits taken, from bit `low` of the field
};

struct Plane {
    int width, count[16];
    Place places[16][3];  // of each pair
};

Plane make_plane(int width) {
    Plane plane{};
    plane.width = width;
    for (int pair = 0; pair < 16; ++pair) {
        plane.count[pair] = 1;
        if (width == 1) {
            plane.places[pair][0] = {0, pair % 8 * 2 + pair / 8, 1, 0};
        } else if (width == 3 && pair == 15) {
            plane.count[pair] = 3;
            for (int v = 0; v < 3; ++v) plane.places[pair][v] = {v, 15, 1, v};
        } else {
            const int per_word = 16 / width;
            plane.places[pair][0] = {pair / per_word, width * (pair % per_word), width, 0};
        }
    }
    return plane;
}

// codes[feature][lane] of one block to 16 * bits words.
void pack_block(const uint32_t (&codes)[kBlock][kLanes], const Plane *planes, int plane_count, uint32_t *out) {
    int offset = 0;
    for (int p = 0; p < plane_count; ++p) {
        const Plane &plane = planes[p];
        std::memset(out, 0, static_cast<size_t>(plane.width) * 64);
        for (int pair = 0; pair < 16; ++pair) {
            for (int i = 0; i < plane.count[pair]; ++i) {
                const Place place = plane.places[pair][i];
                const int shift = offset + place.low;
                const uint32_t mask = (1u << place.taken) - 1;
                uint32_t *words = out + place.vector * kLanes;
                const uint32_t *even = codes[2 * pair], *odd = codes[2 * pair + 1];
                for (int l = 0; l < kLanes; ++l) {
                    words[l] |= ((even[l] >> shift & mask) | (odd[l] >> shift & mask) << 16) << place.bit;
                }
            }
        }
        out += plane.width * kLanes;
        offset += plane.width;
    }
}

}  // namespace

extern "C" int vqp_pack(const uint8_t *codes, int64_t n, int64_t k, int bits, const int32_t *columns, int64_t kp,
                        uint8_t *out, int threads) {
    static const int widths[9][3] = {{}, {}, {2}, {3}, {4}, {4, 1}, {4, 2}, {4, 2, 1}, {8}};
    if (bits < 2 || bits > 8 || n <= 0 || k <= 0 || kp < k || kp % kBlock) return VQP_ELAYOUT;
    for (int64_t i = 0; columns && i < kp; ++i) {
        if (columns[i] < -1 || columns[i] >= k) return VQP_EPERM;
    }
    Plane planes[3];
    int plane_count = 0;
    while (plane_count < 3 && widths[bits][plane_count]) {
        planes[plane_count] = make_plane(widths[bits][plane_count]);
        ++plane_count;
    }
    parallel_for(std::max(threads, 1), (n + kLanes - 1) / kLanes, [&](int64_t panel, int) {
        const int64_t rows = std::min<int64_t>(kLanes, n - panel * kLanes);
        const uint8_t *in = codes + panel * kLanes * k;
        uint8_t *to = out + panel * kp * bits * 2;
        uint32_t tile[kBlock][kLanes] = {}, words[8 * kLanes];
        for (int64_t start = 0; start < kp; start += kBlock, to += 64 * bits) {
            for (int64_t i = 0; i < kBlock; ++i) {
                const int64_t column = columns ? columns[start + i] : start + i < k ? start + i : -1;
                for (int64_t l = 0; l < rows; ++l) tile[i][l] = column < 0 ? 0 : in[l * k + column];
            }
            pack_block(tile, planes, plane_count, words);
            std::memcpy(to, words, static_cast<size_t>(bits) * 64);
        }
    });
    return VQP_OK;
}
