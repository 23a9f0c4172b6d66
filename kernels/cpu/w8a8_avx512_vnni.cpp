// W8A8 by vpdpbusd: unsigned activations (q + 128) times signed weights, four features per lane.

#include <immintrin.h>

#include "w8a8.h"

namespace {

struct Vnni : UnsignedBytes {
    static constexpr int kPanels = 4, kRowBlock = 6, kRowUnit = 1;

    VQP_INLINE_MEMBER static __m512i broadcast(const uint8_t *x) {
        int32_t quad;
        std::memcpy(&quad, x, 4);
        return _mm512_set1_epi32(quad);
    }

    VQP_INLINE_MEMBER static void add_to(int32_t *total, __m512i sum) {
        _mm512_storeu_si512(total, _mm512_add_epi32(_mm512_loadu_si512(total), sum));
    }

    // One row of one panel, a stream of weights: four sums hide the latency of vpdpbusd.
    static void stream(const Int8Args<uint8_t> &args) {
        const int8_t *w = args.weights[0];
        __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;
        for (int64_t i = 0; i < args.quads; i += 4, w += 256) {
            const uint8_t *x = args.x + 4 * i;
            a = _mm512_dpbusd_epi32(a, broadcast(x), _mm512_loadu_si512(w));
            b = _mm512_dpbusd_epi32(b, broadcast(x + 4), _mm512_loadu_si512(w + 64));
            c = _mm512_dpbusd_epi32(c, broadcast(x + 8), _mm512_loadu_si512(w + 128));
            d = _mm512_dpbusd_epi32(d, broadcast(x + 12), _mm512_loadu_si512(w + 192));
        }
        add_to(args.total, _mm512_add_epi32(_mm512_add_epi32(a, b), _mm512_add_epi32(c, d)));
    }

    template <int ROWS, int PANELS>
    static void micro(const Int8Args<uint8_t> &args) {
        if constexpr (ROWS * PANELS == 1) return stream(args);
        __m512i sum[ROWS][PANELS];
        for (int r = 0; r < ROWS; ++r) {
            for (int p = 0; p < PANELS; ++p) sum[r][p] = _mm512_setzero_si512();
        }
        for (int64_t i = 0; i < args.quads; ++i) {
            __m512i w[PANELS];
            for (int p = 0; p < PANELS; ++p) w[p] = _mm512_loadu_si512(args.weights[p] + 64 * i);
            for (int r = 0; r < ROWS; ++r) {
                const __m512i x = broadcast(args.x + r * args.x_stride + 4 * i);
                for (int p = 0; p < PANELS; ++p) sum[r][p] = _mm512_dpbusd_epi32(sum[r][p], x, w[p]);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 8
            for (int p = 0; p < PANELS; ++p) add_to(args.total + (r * PANELS + p) * kLanes, sum[r][p]);
        }
    }
};

}  // namespace

const vqp::W8a8Kernels vqp::w8a8_avx512_vnni = int8_kernels<Vnni>();
