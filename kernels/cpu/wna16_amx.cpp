// The weight-only GEMM of more than 16 rows with bf16 activations by tdpbf16ps.
//
// Decoded weights, [pair of features][panel of 4][16 channels][2], hold a tile in rows of 64 bytes, 256 bytes apart;
// rows of x, [row][128 features], likewise. Sums of a segment are FP32 in tile registers, then scaled into the totals.

#include "gemm_bf16.h"
#include "tiles.h"

namespace {

struct Amx {
    using Element = Bits;
    static constexpr int64_t kPanels = Bf16::kPanels;
    static constexpr int64_t kPanelStride = Bf16::kPanelStride;
    static constexpr int kRowBlock = 2 * kTileRows, kRowUnit = kTileRows;
    static constexpr int64_t kWidth = kPanels * kLanes;

    static void unpack(const Wna16 &a, int64_t panel, int64_t start, int64_t features, Bits *out) {
        Bf16::unpack(a, panel, start, features, out);
    }

    // Segment `s` times HEIGHT tiles of rows and the panels `p` and `p + 1`; `rows` of the rows are real.
    template <int HEIGHT>
    static void add_tiles(int64_t rows, const MicroArgs<Bits> &args, int64_t s, int64_t p) {
        constexpr int64_t x_stride = kChunk * sizeof(Bits), w_stride = kPanels * kPanelStride * sizeof(Bits);
        const Segment segment = args.segments[s];
        const int64_t skipped = segment.start - args.chunk_start;
        const char *x = reinterpret_cast<const char *>(args.x + skipped);
        const char *w = reinterpret_cast<const char *>(args.weights + p * kPanelStride) + skipped / 2 * w_stride;
        alignas(64) float sums[HEIGHT * kTileRows * 2 * kLanes];
        VQP_ZERO_SUMS(HEIGHT);
        for (int64_t i = 0; i < segment.len; i += kBlock, x += kTileBytes, w += kTileRows * w_stride) {
            VQP_TILE_STEP(_tile_dpbf16ps, HEIGHT, x, x_stride, w, w + kTileBytes, w_stride);
        }
        VQP_STORE_SUMS(HEIGHT, sums);
        for (int64_t q = 0; q < 2; ++q) {
            const int64_t column = (p + q) * kLanes;
            const __m512 scale = _mm512_loadu_ps(args.scales + s * kWidth + column);
            __m512 zero = _mm512_setzero_ps();
            if (args.zeros) zero = _mm512_loadu_ps(args.zeros + s * kWidth + column);
            for (int64_t r = 0; r < rows; ++r) {
                __m512 partial = _mm512_load_ps(sums + (2 * r + q) * kLanes);
                if (args.zeros) {
                    partial = _mm512_fnmadd_ps(zero, _mm512_set1_ps(args.xsum[r * args.xsum_stride + s]), partial);
                }
                float *total = args.total + r * kWidth + column;
                _mm512_storeu_ps(total, _mm512_fmadd_ps(scale, partial, _mm512_loadu_ps(total)));
            }
        }
    }

    // A segment that is not a whole number of tiles of 32 features, by vdpbf16ps: groups of an odd multiple of 16.
    static void add_odd(int64_t rows, const MicroArgs<Bits> &args, int64_t s) {
        for (int64_t row = 0; row < rows; row += Bf16::kRowBlock) {
            MicroArgs<Bits> one = args;
            one.segments += s, one.segment_count = 1;
            one.weights += (one.segments->start - args.chunk_start) / 2 * kPanels * kPanelStride;
            one.x += row * kChunk, one.ahead += row * kChunk;
            one.scales += s * kWidth;
            if (args.zeros) one.zeros += s * kWidth, one.xsum += row * args.xsum_stride + s;
            one.total += row * kWidth;
            micro_dispatch<Bf16, Bf16::kRowBlock>(least(Bf16::kRowBlock, rows - row), one);
        }
    }

    static void multiply(int64_t rows, const MicroArgs<Bits> &args) {
        memory_is_read();
        if (args.ahead != args.x) prefetch(args.ahead, rows * kChunk * static_cast<int64_t>(sizeof(Bits)));
        for (int64_t s = 0; s < args.segment_count; ++s) {
            const Segment &segment = args.segments[s];
            if (segment.start % kBlock || segment.len % kBlock) {
                add_odd(rows, args, s);
                continue;
            }
            for (int64_t p = 0; p < kPanels; p += 2) {
                if (rows > kTileRows) {
                    add_tiles<2>(rows, args, s, p);
                } else {
                    add_tiles<1>(rows, args, s, p);
                }
            }
        }
    }
};

void gemm_tiles(const Wna16 &a, int64_t panel_begin, int64_t panel_end, void *scratch) {
    const Tiles tiles;
    gemm<Amx>(a, panel_begin, panel_end, scratch);
}

}  // namespace

const vqp::Wna16Kernels vqp::wna16_amx = {sizeof(Bits), false,   Amx::kPanels,      0,         kTileRows - 1,
                                          prepare_bf16, nullptr, gemm_scratch<Amx>, gemm_tiles};
