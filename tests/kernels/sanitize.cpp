// Random products through the C interface at every level, against sums in double, for a build with
// AddressSanitizer and UndefinedBehaviorSanitizer. Buffers are exactly as long as the interface says,
// so that a read past any of them is caught.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "vqp_cpu.h"

namespace {

std::mt19937 random_engine(1);

int64_t between(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(random_engine); }

double fp8(uint8_t code, int mantissa_bits, int bias) {
    const int exponent = (code & 0x7F) >> mantissa_bits, mantissa = code & ((1 << mantissa_bits) - 1);
    const double fraction = std::ldexp(mantissa, -mantissa_bits);
    const double magnitude = exponent ? std::ldexp(1 + fraction, exponent - bias) : std::ldexp(fraction, 1 - bias);
    return code & 0x80 ? -magnitude : magnitude;
}

uint16_t to_bf16(float f) {
    uint32_t u;
    std::memcpy(&u, &f, 4);
    return static_cast<uint16_t>(u >> 16);
}

float from_bf16(uint16_t h) {
    const uint32_t u = static_cast<uint32_t>(h) << 16;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
}

// Activations that bf16 holds exactly, in the wanted dtype (F32 or BF16).
struct Activations {
    std::vector<float> wide;
    std::vector<uint16_t> half;

    Activations(int64_t count, bool bf16) : wide(static_cast<size_t>(count)) {
        for (float &f : wide) f = from_bf16(to_bf16(std::normal_distribution<float>()(random_engine)));
        if (bf16) {
            for (float f : wide) half.push_back(to_bf16(f));
        }
    }
    const void *data() const { return half.empty() ? static_cast<const void *>(wide.data()) : half.data(); }
};

struct Output {
    std::vector<float> wide;
    std::vector<uint16_t> half;

    Output(int64_t count, bool bf16) : wide(bf16 ? 0 : static_cast<size_t>(count)), half(bf16 ? static_cast<size_t>(count) : 0) {}
    void *data() { return half.empty() ? static_cast<void *>(wide.data()) : half.data(); }
    double at(size_t i) const { return half.empty() ? wide[i] : from_bf16(half[i]); }
};

int failures = 0;

void check(const char *what, double got, double exact, double bound) {
    if (std::fabs(got - exact) <= bound) return;
    if (++failures < 10) std::printf("%s: %g, expected %g +- %g\n", what, got, exact, bound);
}

void weight_only() {
    const int kind = between(0, 3) ? 0 : static_cast<int>(between(1, 2)), bits = kind ? 8 : static_cast<int>(between(2, 8));
    const int64_t n = between(1, 70), k = between(1, 330), group = 16 * between(1, 9);
    const int64_t groups = (k + group - 1) / group, kp = (k + 31) / 32 * 32, rows = (n + 15) / 16 * 16;
    const bool has_zeros = !kind && between(0, 1), bf16 = between(0, 1);
    // A permutation shuffles the columns inside each group, and so leaves the groups where they are.
    const bool permuted = between(0, 1);
    std::vector<int32_t> perm(permuted ? static_cast<size_t>(kp + groups + 1) : 0);
    if (permuted) {
        for (int64_t i = 0; i < kp; ++i) perm[i] = i < k ? static_cast<int32_t>(i) : -1;
        for (int64_t g = 0; g <= groups; ++g) perm[kp + g] = static_cast<int32_t>(g < groups ? g * group : kp);
        for (int64_t g = 0; g < groups; ++g) {
            std::shuffle(perm.begin() + perm[kp + g], perm.begin() + std::min(k, (g + 1) * group), random_engine);
        }
    }
    std::vector<uint8_t> codes(static_cast<size_t>(n * k)), data(static_cast<size_t>(rows * kp * bits / 8));
    for (uint8_t &c : codes) c = static_cast<uint8_t>(between(0, (1 << bits) - 1));
    if (kind) {
        for (uint8_t &c : codes) c &= 0xBB;  // no NaN, no infinity
    }
    std::vector<float> scales(static_cast<size_t>(rows * groups)), bias(static_cast<size_t>(n));
    std::vector<uint8_t> zeros(has_zeros ? scales.size() : 0);
    for (float &s : scales) s = std::uniform_real_distribution<float>(0.5f, 1.0f)(random_engine);
    for (float &b : bias) b = std::normal_distribution<float>()(random_engine);
    for (uint8_t &z : zeros) z = static_cast<uint8_t>(between(0, 255));
    if (vqp_pack(codes.data(), n, k, bits, permuted ? perm.data() : nullptr, kp, data.data(), 2)) ++failures;

    const int64_t sizes[] = {1, 2, 4, 7, 16, 19, 40}, m = sizes[between(0, 6)];
    const Activations x(m * k, bf16);
    for (int level = 0; level <= vqp_cpu_max_level(); ++level) {
        vqp_cpu_set_level(level);
        Output y(m * n, bf16);
        const int error = vqp_wna16_linear(
            x.data(), bf16 ? VQP_BF16 : VQP_F32, y.data(), m, data.data(), static_cast<int64_t>(data.size()),
            scales.data(), VQP_F32, has_zeros ? zeros.data() : nullptr, VQP_U8, permuted ? perm.data() : nullptr,
            static_cast<int64_t>(perm.size()), bias.data(), VQP_LAYOUT_VERSION << 8 | kind, bits, group, groups, n, k, 2);
        if (error) ++failures;
        for (int64_t row = 0; row < m; ++row) {
            for (int64_t c = 0; c < n; ++c) {
                double exact = bias[c], size = std::fabs(bias[c]);
                for (int64_t i = 0; i < k; ++i) {
                    const uint8_t code = codes[c * k + i];
                    const int64_t table = (c / 16 * groups + i / group) * 16 + c % 16;
                    const double zero = kind ? 0 : has_zeros ? zeros[table] : 1 << (bits - 1);
                    const double value = kind == 1 ? fp8(code, 3, 7) : kind == 2 ? fp8(code, 2, 15) : code;
                    const double factor = scales[table] * static_cast<double>(x.wide[row * k + i]);
                    exact += (value - zero) * factor;
                    size += (std::fabs(value) + zero) * std::fabs(factor);
                }
                check("wna16", y.at(row * n + c), exact, 1e-6 * size + (bf16 ? 0.004 * std::fabs(exact) : 0));
            }
        }
    }
}

void int8() {
    const int64_t n = between(1, 70), k = between(1, 330), kp = (k + 63) / 64 * 64, rows = (n + 15) / 16 * 16;
    const bool bf16 = between(0, 1), symmetric = between(0, 1), fixed = between(0, 1);
    std::vector<int8_t> codes(static_cast<size_t>(n * k)), data(static_cast<size_t>(rows * kp));
    std::vector<float> scales(static_cast<size_t>(rows), 0.01f);
    std::vector<int32_t> sums(static_cast<size_t>(rows));
    for (int64_t c = 0; c < n; ++c) {
        for (int64_t i = 0; i < k; ++i) {
            const int8_t code = static_cast<int8_t>(between(-128, 127));
            codes[c * k + i] = code;
            data[((c / 16 * (kp / 4) + i / 4) * 16 + c % 16) * 4 + i % 4] = code;
            sums[c] += code;
        }
    }
    const float in_scale = 0.03f;
    const int32_t in_zero = 5;
    const int64_t sizes[] = {1, 3, 6, 19}, m = sizes[between(0, 3)];
    const Activations x(m * k, bf16);
    for (int level = 0; level <= vqp_cpu_max_level(); ++level) {
        vqp_cpu_set_level(level);
        Output y(m * n, bf16);
        const int error = vqp_w8a8_linear(x.data(), bf16 ? VQP_BF16 : VQP_F32, y.data(), m, data.data(),
                                          static_cast<int64_t>(data.size()), scales.data(), sums.data(), nullptr,
                                          fixed ? &in_scale : nullptr, fixed ? &in_zero : nullptr, symmetric, n, k, 2);
        if (error) ++failures;
        for (int64_t row = 0; row < m; ++row) {
            double low = 0, high = 0;
            for (int64_t i = 0; i < k; ++i) {
                low = std::min(low, static_cast<double>(x.wide[row * k + i]));
                high = std::max(high, static_cast<double>(x.wide[row * k + i]));
            }
            // Half a step of the activation scale for every input feature, and what static scales clip.
            const double step = fixed ? in_scale : symmetric ? std::max(high, -low) / 127 : (high - low) / 255;
            for (int64_t c = 0; c < n; ++c) {
                double exact = 0, size = 0;
                for (int64_t i = 0; i < k; ++i) {
                    const double w = codes[c * k + i] * 0.01, value = x.wide[row * k + i];
                    const double top = fixed ? (127 - in_zero) * step : high, bottom = fixed ? (-128 - in_zero) * step : low;
                    exact += w * std::min(std::max(value, bottom), top);
                    size += std::fabs(w) * step;
                }
                check("w8a8", y.at(row * n + c), exact, 1.01 * size + (bf16 ? 0.004 * std::fabs(exact) : 0) + 1e-6);
            }
        }
    }
}

void refusals() {
    uint8_t data[16 * 32 / 2] = {};
    float scales[16] = {}, x[32] = {}, y[16];
    const auto call = [&](int64_t bytes, int kind, int x_dtype, int bits) {
        return vqp_wna16_linear(x, x_dtype, y, 1, data, bytes, scales, VQP_F32, nullptr, 0, nullptr, 0, nullptr, kind, bits,
                                32, 1, 16, 32, 1);
    };
    const int kind = VQP_LAYOUT_VERSION << 8;
    if (call(sizeof data, kind, VQP_F32, 4) != VQP_OK) ++failures;
    if (call(sizeof data - 1, kind, VQP_F32, 4) != VQP_ELAYOUT) ++failures;
    if (call(sizeof data, kind + 256, VQP_F32, 4) != VQP_ELAYOUT) ++failures;
    if (call(sizeof data, kind, VQP_U8, 4) != VQP_EDTYPE) ++failures;
    if (call(sizeof data, kind, VQP_F32, 9) != VQP_ELAYOUT) ++failures;
    if (vqp_cpu_set_level(VQP_LEVELS) == 0) ++failures;
}

}  // namespace

int main() {
    refusals();
    for (int i = 0; i < 60; ++i) weight_only();
    for (int i = 0; i < 30; ++i) int8();
    std::printf("%d failures\n", failures);
    return failures != 0;
}
