// W8A8 of more than 16 rows by tdpbusd: unsigned activations (q + 128) times signed weights, int32 sums.
//
// Weights, [quad of features][16 channels][4], are tiles as they lie: 16 quads are 1024 contiguous bytes.

#include <immintrin.h>

#include "tiles.h"
#include "w8a8.h"

namespace {

struct Amx : UnsignedBytes {
    static constexpr int kPanels = 4, kRowBlock = 2 * kTileRows, kRowUnit = kTileRows;

    // HEIGHT tiles of rows times the panels `p` and `p + 1` of PANELS; `rows` of the rows are real.
    template <int HEIGHT, int PANELS>
    static void add_tiles(int64_t rows, const Int8Args<uint8_t> &args, int p) {
        const uint8_t *x = args.x;
        const int8_t *w0 = args.weights[p], *w1 = args.weights[p + 1];
        alignas(64) int32_t sums[HEIGHT * kTileRows * 2 * kLanes];
        VQP_ZERO_SUMS(HEIGHT);
        // Features are padded to a multiple of 64.
        for (int64_t i = 0; i < args.quads; i += kTileRows) {
            VQP_TILE_STEP(_tile_dpbusd, HEIGHT, x, args.x_stride, w0, w1, kTileBytes);
            x += kTileBytes, w0 += kTileRows * kTileBytes, w1 += kTileRows * kTileBytes;
        }
        VQP_STORE_SUMS(HEIGHT, sums);
        for (int64_t r = 0; r < rows; ++r) {
            for (int q = 0; q < 2; ++q) {
                int32_t *total = args.total + (r * PANELS + p + q) * kLanes;
                const __m512i sum = _mm512_load_si512(sums + (2 * r + q) * kLanes);
                _mm512_storeu_si512(total, _mm512_add_epi32(_mm512_loadu_si512(total), sum));
            }
        }
    }

    template <int PANELS>
    static void multiply(int64_t rows, const Int8Args<uint8_t> &args) {
        memory_is_read();
        for (int p = 0; p < PANELS; p += 2) {
            if (rows > kTileRows) {
                add_tiles<2, PANELS>(rows, args, p);
            } else {
                add_tiles<1, PANELS>(rows, args, p);
            }
        }
    }
};

void gemm_tiles(const W8a8 &a, int64_t begin, int64_t end, void *scratch) {
    const Tiles tiles;
    int8_tile<Amx, Amx::kPanels>(a, begin, end, kInt8Chunk, static_cast<int32_t *>(scratch));
}

}  // namespace

const vqp::W8a8Kernels vqp::w8a8_amx = {sizeof(uint8_t),   Amx::kPanels,      kTileRows - 1,
                                        prepare_int8<Amx>, int8_scratch<Amx>, gemm_tiles};
