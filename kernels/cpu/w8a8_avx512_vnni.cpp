// W8A8 by vpdpbusd: unsigned activations (q + 128) times signed weights, four features per lane.

#include <immintrin.h>

#include "w8a8.h"

namespace {

struct Vnni {
    using Element = uint8_t;
    static constexpr int kOffset = 128, kPanels = 4, kRowBlock = 6;

    VQP_INLINE_MEMBER static void put(const int32_t *q, uint8_t *out) {
        for (int i = 0; i < 4; ++i) out[i] = static_cast<uint8_t>(q[i]);
    }

    VQP_INLINE_MEMBER static __m512i broadcast(const uint8_t *x) {
        int32_t quad;
        std::memcpy(&quad, x, 4);
        return _mm512_set1_epi32(quad);
    }

    template <int ROWS, int PANELS>
    static void micro(const Int8Args<uint8_t> &args) {
        // Chains: a single row of a single panel is split over neighbouring quads to hide latency.
        constexpr int chains = ROWS * PANELS < 4 ? 4 : 1;
        __m512i sum[chains][ROWS][PANELS];
        for (auto &chain : sum) {
            for (auto &row : chain) {
                for (auto &s : row) s = _mm512_setzero_si512();
            }
        }
        for (int64_t i = 0; i < args.quads; i += chains) {
            for (int c = 0; c < chains; ++c) {
                __m512i w[PANELS];
                for (int p = 0; p < PANELS; ++p) w[p] = _mm512_loadu_si512(args.weights[p] + 64 * (i + c));
                for (int r = 0; r < ROWS; ++r) {
                    const __m512i x = broadcast(args.x + r * args.x_stride + 4 * (i + c));
                    for (int p = 0; p < PANELS; ++p) sum[c][r][p] = _mm512_dpbusd_epi32(sum[c][r][p], x, w[p]);
                }
            }
        }
        for (int r = 0; r < ROWS; ++r) {
            for (int p = 0; p < PANELS; ++p) {
                int32_t *total = args.total + (r * PANELS + p) * kLanes;
                __m512i all = _mm512_loadu_si512(total);
                for (int c = 0; c < chains; ++c) all = _mm512_add_epi32(all, sum[c][r][p]);
                _mm512_storeu_si512(total, all);
            }
        }
    }
};

}  // namespace

const vqp::W8a8Kernels vqp::w8a8_avx512_vnni = int8_kernels<Vnni>();
