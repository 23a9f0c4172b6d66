// Codes (n, k), one byte each, to the packed planes of vllm_quant_kernels/cpu/layout.py.

#include <algorithm>
#include <cstring>

#include "planes.h"
#include "transpose.h"

using namespace vqp;

extern "C" int vqp_pack(const uint8_t *codes, int64_t n, int64_t k, int bits, const int32_t *columns, int64_t kp,
                        uint8_t *out, int threads) {
    const auto fill = [&](int64_t first, int64_t panels, int64_t from, int64_t features, uint8_t *to) {
        for (int64_t panel = first; panel < first + panels; ++panel, to += panel_stride(features)) {
            const int64_t lanes = std::min<int64_t>(kLanes, n - panel * kLanes);
            const uint8_t *in = codes + panel * kLanes * k + from;
            int64_t i = 0;
            for (; lanes == kLanes && i + 16 <= features; i += 16) transpose16(in + i, k, to + i * kLanes, kLanes);
            for (; i < features; ++i) {
                for (int64_t l = 0; l < kLanes; ++l) to[i * kLanes + l] = l < lanes ? in[l * k + i] : 0;
            }
        }
    };
    return pack_panels(n, k, bits, columns, kp, out, threads, fill);
}
