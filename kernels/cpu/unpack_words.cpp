// Codes in the 32-bit words of a checkpoint, to packed planes or to bytes, without the whole matrix in between.
//
//   VQP_WORDS_N         words (k, n * bits / 32)        fields along n, the even channels of a word in its low half (AWQ)
//   VQP_WORDS_K         words (ceil(k * bits / 32), n)  fields along k, one stream of bits down each column (GPTQ)
//   VQP_WORDS_K_ROWS    words (n, ceil(k * bits / 32))  fields along k, one stream of bits along each row
//   VQP_WORDS_K_PADDED  words (n, ceil(k / per_word))   fields along k, per_word = 32 / bits of them to a word

#include <algorithm>
#include <cstring>

#include "planes.h"
#include "transpose.h"

using namespace vqp;

namespace {

typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));

struct Source {
    const uint32_t *words;
    int layout, bits;
    int64_t rows, columns;  // of `words`
    int64_t row, column;    // the first code that is wanted: channel, input feature
    int64_t n;              // channels that are wanted
};

void load_words(const Source &s, int64_t channel, int64_t lanes, int64_t word, uint32_t (&out)[kLanes]) {
    if (s.layout == VQP_WORDS_K) {
        std::memcpy(out, s.words + word * s.columns + channel, static_cast<size_t>(lanes) * 4);
    } else {
        for (int64_t l = 0; l < lanes; ++l) out[l] = s.words[(channel + l) * s.columns + word];
    }
}

// to[feature][lane]: fields along k. A field that crosses words takes its high bits from the next one.
void fill_along_k(const Source &s, int64_t panel, int64_t from, int64_t features, uint8_t *to) {
    const int64_t channel = s.row + panel * kLanes, lanes = std::min<int64_t>(kLanes, s.n - panel * kLanes);
    const int bits = s.bits, per_word = s.layout == VQP_WORDS_K_PADDED ? 32 / bits : 0;
    const uint32_t mask = (1u << bits) - 1;
    uint32_t low[kLanes] = {}, high[kLanes] = {};
    int64_t loaded = -1;
    for (int64_t i = 0; i < features; ++i, to += kLanes) {
        const int64_t k = s.column + from + i, word = per_word ? k / per_word : k * bits / 32;
        const int shift = static_cast<int>(per_word ? k % per_word * bits : k * bits % 32);
        if (word != loaded) {
            if (word == loaded + 1 && loaded >= 0 && per_word == 0 && 32 % bits) {
                std::memcpy(low, high, sizeof low);
            } else {
                load_words(s, channel, lanes, word, low);
            }
            const bool more = per_word == 0 && 32 % bits && word + 1 < (s.layout == VQP_WORDS_K ? s.rows : s.columns);
            if (more) load_words(s, channel, lanes, word + 1, high);
            loaded = word;
        }
        Words value;
        std::memcpy(&value, low, sizeof value);
        value >>= shift;
        if (shift + bits > 32) {
            Words next;
            std::memcpy(&next, high, sizeof next);
            value |= next << (32 - shift);
        }
        value &= mask;
        for (int l = 0; l < kLanes; ++l) to[l] = static_cast<uint8_t>(value[l]);
    }
}

// to[feature][lane]: fields along n. Channel 2 * i of a word is field i of its low half, channel 2 * i + 1 of its high half.
template <int BITS>
void fill_along_n(const Source &s, int64_t panel, int64_t from, int64_t features, uint8_t *to) {
    constexpr int kWords = BITS / 2, kOut = 8 / BITS;  // words of a panel; 32-bit groups of four codes from each
    constexpr uint32_t kMask = ((1u << BITS) - 1) * 0x10001u;
    const int64_t first = (s.row + panel * kLanes) * BITS / 32;
    const int64_t words = std::min<int64_t>(kWords, (s.n - panel * kLanes) * BITS / 32);
    const uint32_t *in = s.words + (s.column + from) * s.columns + first;
    for (int64_t i = 0; i < features; ++i, in += s.columns, to += kLanes) {
        uint32_t word[kWords] = {}, out[kWords * kOut];
        std::memcpy(word, in, static_cast<size_t>(words) * 4);
        for (int w = 0; w < kWords; ++w) {
            for (int q = 0; q < kOut; ++q) {
                const uint32_t a = word[w] >> (2 * q * BITS) & kMask, b = word[w] >> ((2 * q + 1) * BITS) & kMask;
                out[w * kOut + q] = ((a | a >> 8) & 0xFFFF) | (b | b >> 8) << 16;
            }
        }
        std::memcpy(to, out, kLanes);
    }
}

void fill(const Source &s, int64_t first, int64_t panels, int64_t from, int64_t features, uint8_t *to) {
    for (int64_t panel = first; panel < first + panels; ++panel, to += features * kLanes) {
        if (s.layout != VQP_WORDS_N) {
            fill_along_k(s, panel, from, features, to);
        } else if (s.bits == 2) {
            fill_along_n<2>(s, panel, from, features, to);
        } else if (s.bits == 4) {
            fill_along_n<4>(s, panel, from, features, to);
        } else {
            fill_along_n<8>(s, panel, from, features, to);
        }
    }
}

// The source of codes [row, row + n) x [column, column + k), or an error.
int make_source(const int32_t *words, int64_t rows, int64_t columns, int layout, int bits, int64_t row, int64_t n,
                int64_t column, int64_t k, Source &source) {
    if (bits < 2 || bits > 8 || rows <= 0 || columns <= 0 || row < 0 || n <= 0 || column < 0 || k <= 0) {
        return VQP_ELAYOUT;
    }
    int64_t channels = rows, features = rows;
    switch (layout) {
        case VQP_WORDS_N:
            if (32 % bits || row % kLanes || n * bits % 32) return VQP_ELAYOUT;
            channels = columns * (32 / bits);
            break;
        case VQP_WORDS_K:
            channels = columns, features = rows * 32 / bits;
            break;
        case VQP_WORDS_K_ROWS:
            features = columns * 32 / bits;
            break;
        case VQP_WORDS_K_PADDED:
            features = columns * (32 / bits);
            break;
        default:
            return VQP_ELAYOUT;
    }
    if (row > channels - n || column > features - k) return VQP_ELAYOUT;
    source = {reinterpret_cast<const uint32_t *>(words), layout, bits, rows, columns, row, column, n};
    return VQP_OK;
}

}  // namespace

extern "C" {

int vqp_pack_words(const int32_t *words, int64_t rows, int64_t columns, int layout, int bits, int64_t row, int64_t n,
                   int64_t column, int64_t k, const int32_t *order, int64_t kp, uint8_t *out, int threads) {
    Source source;
    if (const int error = make_source(words, rows, columns, layout, bits, row, n, column, k, source)) return error;
    return pack_panels(n, k, bits, order, kp, out, threads,
                       [&](int64_t first, int64_t panels, int64_t from, int64_t features, uint8_t *to) {
                           fill(source, first, panels, from, features, to);
                       });
}

int vqp_unpack_words(const int32_t *words, int64_t rows, int64_t columns, int layout, int bits, int64_t row, int64_t n,
                     int64_t column, int64_t k, uint8_t *codes, int threads) {
    Source source;
    if (const int error = make_source(words, rows, columns, layout, bits, row, n, column, k, source)) return error;
    const int64_t panels = (n + kLanes - 1) / kLanes;
    parallel_for(std::max(threads, 1), panels, [&](int64_t panel, int) {
        const int64_t lanes = std::min<int64_t>(kLanes, n - panel * kLanes);
        uint8_t tile[kStripColumns * kLanes];
        for (int64_t from = 0; from < k; from += kStripColumns) {
            const int64_t features = std::min(kStripColumns, k - from);
            fill(source, panel, 1, from, features, tile);
            uint8_t *out = codes + panel * kLanes * k + from;
            int64_t i = 0;
            for (; lanes == kLanes && i + 16 <= features; i += 16) transpose16(tile + i * kLanes, kLanes, out + i, k);
            for (; i < features; ++i) {
                for (int64_t l = 0; l < lanes; ++l) out[l * k + i] = tile[i * kLanes + l];
            }
        }
    });
    return VQP_OK;
}

}  // extern "C"
