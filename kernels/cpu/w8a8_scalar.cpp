// W8A8 for any CPU: plain loops that the compiler turns into SSE2 where it can.

#include "w8a8.h"

namespace {

struct Scalar {
    using Element = int16_t;
    static constexpr int kOffset = 0, kPanels = 1, kRowBlock = 1, kRowUnit = 1;

    VQP_INLINE_MEMBER static void put(const int32_t *q, int16_t *out) {
        for (int i = 0; i < kLanes; ++i) out[i] = static_cast<int16_t>(q[i]);
    }

    template <int ROWS, int PANELS>
    static void micro(const Int8Args<int16_t> &args) {
        static_assert(ROWS == 1 && PANELS == 1, "one row of one panel at a time");
        const int8_t *w = args.weights[0];
        int32_t sum[kLanes] = {};
        for (int64_t i = 0; i < args.quads; ++i, w += 64) {
            for (int l = 0; l < kLanes; ++l) {
                for (int j = 0; j < 4; ++j) sum[l] += w[4 * l + j] * args.x[4 * i + j];
            }
        }
        for (int l = 0; l < kLanes; ++l) args.total[l] += sum[l];
    }
};

}  // namespace

const vqp::W8a8Kernels vqp::w8a8_scalar = int8_kernels<Scalar>();
