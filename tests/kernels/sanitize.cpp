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
    const bool int8 = !kind && bits <= 7;
    std::vector<double> tops(static_cast<size_t>(m * groups));  // max |x| of a row in a group
    for (int64_t row = 0; row < m; ++row) {
        for (int64_t i = 0; i < k; ++i) {
            double &top = tops[row * groups + i / group];
            top = std::max(top, std::fabs(static_cast<double>(x.wide[row * k + i])));
        }
    }
    std::vector<double> exact(static_cast<size_t>(m * n)), size(exact.size()), steps(exact.size());
    for (int64_t row = 0; row < m; ++row) {
        for (int64_t c = 0; c < n; ++c) {
            const size_t at = static_cast<size_t>(row * n + c);
            exact[at] = bias[c], size[at] = std::fabs(bias[c]);
            for (int64_t i = 0; i < k; ++i) {
                const uint8_t code = codes[c * k + i];
                const int64_t table = (c / 16 * groups + i / group) * 16 + c % 16;
                const double zero = kind ? 0 : has_zeros ? zeros[table] : 1 << (bits - 1);
                const double value = kind == 1 ? fp8(code, 3, 7) : kind == 2 ? fp8(code, 2, 15) : code;
                const double factor = scales[table] * static_cast<double>(x.wide[row * k + i]);
                exact[at] += (value - zero) * factor;
                size[at] += (std::fabs(value) + zero) * std::fabs(factor);
                // Half a step of an INT8 activation's scale: at most that of its group.
                steps[at] += std::fabs(value - zero) * scales[table] * tops[row * groups + i / group] / 254;
            }
        }
    }
    for (int level = 0; level <= vqp_cpu_max_level(); ++level) {
        vqp_cpu_set_level(level);
        Output y(m * n, bf16), z(m * n, bf16);
        const auto call = [&](auto *linear, Output &out) {
            return linear(x.data(), bf16 ? VQP_BF16 : VQP_F32, out.data(), m, data.data(), static_cast<int64_t>(data.size()),
                          scales.data(), VQP_F32, has_zeros ? zeros.data() : nullptr, VQP_U8,
                          permuted ? perm.data() : nullptr, static_cast<int64_t>(perm.size()), bias.data(),
                          VQP_LAYOUT_VERSION << 8 | kind, bits, group, groups, n, k, 2);
        };
        if (call(vqp_wna16_linear, y) != VQP_OK) ++failures;
        if (call(vqp_w4a8_linear, z) != (int8 ? VQP_OK : VQP_ELAYOUT)) ++failures;
        for (size_t i = 0; i < exact.size(); ++i) {
            const double sums = 1e-6 * size[i], rounding = bf16 ? 0.004 : 0;
            check("wna16", y.at(i), exact[i], sums + rounding * std::fabs(exact[i]));
            if (int8) check("w4a8", z.at(i), exact[i], 1.01 * steps[i] + sums + rounding * (std::fabs(exact[i]) + steps[i]));
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
    std::vector<double> exact(static_cast<size_t>(m * n)), size(exact.size());
    for (int64_t row = 0; row < m; ++row) {
        double low = 0, high = 0;
        for (int64_t i = 0; i < k; ++i) {
            low = std::min(low, static_cast<double>(x.wide[row * k + i]));
            high = std::max(high, static_cast<double>(x.wide[row * k + i]));
        }
        // Half a step of the activation scale for every input feature, and what static scales clip.
        const double step = fixed ? in_scale : symmetric ? std::max(high, -low) / 127 : (high - low) / 255;
        const double top = fixed ? (127 - in_zero) * step : high, bottom = fixed ? (-128 - in_zero) * step : low;
        for (int64_t c = 0; c < n; ++c) {
            for (int64_t i = 0; i < k; ++i) {
                const double w = codes[c * k + i] * 0.01, value = x.wide[row * k + i];
                exact[row * n + c] += w * std::min(std::max(value, bottom), top);
                size[row * n + c] += std::fabs(w) * step;
            }
        }
    }
    for (int level = 0; level <= vqp_cpu_max_level(); ++level) {
        vqp_cpu_set_level(level);
        Output y(m * n, bf16);
        const int error = vqp_w8a8_linear(x.data(), bf16 ? VQP_BF16 : VQP_F32, y.data(), m, data.data(),
                                          static_cast<int64_t>(data.size()), scales.data(), sums.data(), nullptr,
                                          fixed ? &in_scale : nullptr, fixed ? &in_zero : nullptr, symmetric, n, k, 2);
        if (error) ++failures;
        for (size_t i = 0; i < exact.size(); ++i) {
            check("w8a8", y.at(i), exact[i], 1.01 * size[i] + (bf16 ? 0.004 * std::fabs(exact[i]) : 0) + 1e-6);
        }
    }
}

// Codes in words: every layout, any part of the matrix, to bytes and to planes, against a reader of single bits.
void stored_words() {
    const int layout = static_cast<int>(between(VQP_WORDS_N, VQP_WORDS_K_PADDED));
    const int bits = static_cast<int>(layout == VQP_WORDS_N ? 2 << between(0, 2) : between(2, 8)), per_word = 32 / bits;
    const bool along_n = layout == VQP_WORDS_N;
    const int64_t n = along_n ? between(1, 6) * per_word : between(1, 70), k = between(1, 330);
    const int64_t dense = (k * bits + 31) / 32;
    const int64_t rows = along_n ? k : layout == VQP_WORDS_K ? dense : n;
    const int64_t columns = along_n ? n / per_word : layout == VQP_WORDS_K ? n
                            : layout == VQP_WORDS_K_ROWS                   ? dense
                                                                           : (k + per_word - 1) / per_word;
    std::vector<int32_t> words(static_cast<size_t>(rows * columns));
    for (int32_t &w : words) w = static_cast<int32_t>(random_engine());
    const auto code = [&](int64_t channel, int64_t feature) {
        int64_t value = 0;
        for (int b = 0; b < bits; ++b) {
            int64_t word, bit;
            if (along_n) {
                const int64_t at = channel % per_word, field = at % 2 ? per_word / 2 + at / 2 : at / 2;
                word = feature * columns + channel / per_word, bit = field * bits + b;
            } else {
                const int64_t place = layout == VQP_WORDS_K_PADDED ? feature / per_word * 32 + feature % per_word * bits + b
                                                                   : feature * bits + b;
                word = layout == VQP_WORDS_K ? place / 32 * columns + channel : channel * columns + place / 32;
                bit = place % 32;
            }
            value |= static_cast<int64_t>(static_cast<uint32_t>(words[static_cast<size_t>(word)]) >> bit & 1) << b;
        }
        return static_cast<uint8_t>(value);
    };
    const int64_t row = between(0, (n - 1) / 16) * 16, column = between(0, k - 1);
    const int64_t wanted_n = along_n ? n - row : between(1, n - row), wanted_k = between(1, k - column);
    std::vector<uint8_t> codes(static_cast<size_t>(wanted_n * wanted_k));
    if (vqp_unpack_words(words.data(), rows, columns, layout, bits, row, wanted_n, column, wanted_k, codes.data(), 2)) ++failures;
    for (int64_t i = 0; i < wanted_n; ++i) {
        for (int64_t j = 0; j < wanted_k; ++j) check("words", codes[i * wanted_k + j], code(row + i, column + j), 0);
    }
    const int64_t kp = (wanted_k + 31) / 32 * 32, padded = (wanted_n + 15) / 16 * 16;
    std::vector<int32_t> order(between(0, 1) ? static_cast<size_t>(kp) : 0);
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int64_t>(i) < wanted_k ? static_cast<int32_t>(i) : -1;
    std::shuffle(order.begin(), order.end(), random_engine);
    const int32_t *columns_of = order.empty() ? nullptr : order.data();
    std::vector<uint8_t> direct(static_cast<size_t>(padded * kp * bits / 8)), twice(direct.size());
    if (vqp_pack_words(words.data(), rows, columns, layout, bits, row, wanted_n, column, wanted_k, columns_of, kp,
                       direct.data(), 2)) ++failures;
    if (vqp_pack(codes.data(), wanted_n, wanted_k, bits, columns_of, kp, twice.data(), 1)) ++failures;
    if (direct != twice) ++failures;
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
    const std::vector<int32_t> words(16 * 32);
    std::vector<uint8_t> codes(32 * 128);
    const auto read = [&](int layout, int width, int64_t first, int64_t n, int64_t column, int64_t k) {
        return vqp_unpack_words(words.data(), 16, 32, layout, width, first, n, column, k, codes.data(), 1);
    };
    if (read(VQP_WORDS_K, 4, 0, 32, 0, 128) != VQP_OK) ++failures;
    if (read(VQP_WORDS_K, 4, 0, 33, 0, 128) != VQP_ELAYOUT || read(VQP_WORDS_K, 4, 1, 32, 0, 128) != VQP_ELAYOUT) ++failures;
    if (read(VQP_WORDS_K, 4, 0, 32, 1, 128) != VQP_ELAYOUT || read(VQP_WORDS_K, 9, 0, 32, 0, 128) != VQP_ELAYOUT) ++failures;
    if (read(VQP_WORDS_N, 3, 0, 32, 0, 16) != VQP_ELAYOUT || read(VQP_WORDS_N, 4, 8, 32, 0, 16) != VQP_ELAYOUT) ++failures;
    if (read(VQP_WORDS_K_PADDED + 1, 4, 0, 16, 0, 32) != VQP_ELAYOUT) ++failures;
}

}  // namespace

int main() {
    refusals();
    for (int i = 0; i < 60; ++i) weight_only();
    for (int i = 0; i < 30; ++i) int8();
    for (int i = 0; i < 200; ++i) stored_words();
    std::printf("%d failures\n", failures);
    return failures != 0;
}
