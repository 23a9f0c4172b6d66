// Codes in the 32-bit words of a checkpoint, to packed planes or to bytes, without the whole matrix in between.
//
//   VQP_WORDS_N         words (k, n * bits / 32)        fields along n, the even channels of a word in its low half (AWQ)
//   VQP_WORDS_K         words (ceil(k * bits / 32), n)  fields along k, one stream of bits down each column (GPTQ)
//   VQP_WORDS_K_ROWS    words (n, ceil(k * bits / 32))  fields along k, one stream of bits along each row
//   VQP_WORDS_K_PADDED  words (n, ceil(k / per_word))   fields along k, per_word = 32 / bits of them to a word

#include <algorithm>
#include <cstring>
#include <utility>

#include "planes.h"
#include "transpose.h"

using namespace vqp;

namespace {

struct Source {
    const uint32_t *words;
    int layout, bits;
    int64_t rows, columns;  // of `words`
    int64_t row, column;    // the first code that is wanted: channel, input feature
    int64_t n;              // channels that are wanted
};

// 16 lanes: the fields of `bits` at bit `shift` of `low`, with the rest of those that cross from `high`.
inline void put(const uint32_t *low, const uint32_t *high, int shift, int bits, uint8_t *to) {
#if defined(__SSE2__)
    const __m128i right = _mm_cvtsi32_si128(shift), left = _mm_cvtsi32_si128(32 - shift), mask = _mm_set1_epi32((1 << bits) - 1);
    __m128i v[4];
    for (int i = 0; i < 4; ++i) v[i] = _mm_srl_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(low) + i), right);
    for (int i = 0; i < 4 && shift + bits > 32; ++i) {
        v[i] = _mm_or_si128(v[i], _mm_sll_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(high) + i), left));
    }
    for (__m128i &part : v) part = _mm_and_si128(part, mask);
    const __m128i bytes = _mm_packus_epi16(_mm_packs_epi32(v[0], v[1]), _mm_packs_epi32(v[2], v[3]));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to), bytes);
#else
    for (int l = 0; l < kLanes; ++l) {
        const uint32_t crossing = shift + bits > 32 ? high[l] << (32 - shift) : 0;
        to[l] = static_cast<uint8_t>((low[l] >> shift | crossing) & ((1u << bits) - 1));
    }
#endif
}

// Down the columns: a row of words serves all panels before the next one is read.
void fill_columns(const Source &s, int64_t first, int64_t panels, int64_t from, int64_t features, uint8_t *to) {
    for (int64_t i = 0, stop; i < features; i = stop) {
        const int64_t bit = (s.column + from + i) * s.bits, word = bit / 32;
        stop = i + 1;
        while (stop < features && (bit + (stop - i) * s.bits) / 32 == word) ++stop;
        const bool crosses = bit + (stop - i) * s.bits > (word + 1) * 32;  // only the last field of a word can
        const uint32_t *row = s.words + word * s.columns + s.row;
        for (int64_t panel = 0; panel < panels; ++panel) {
            const int64_t channel = (first + panel) * kLanes, lanes = s.n - channel;
            const uint32_t *low = row + channel, *high = crosses ? low + s.columns : low;
            uint32_t edge[2][kLanes] = {};
            if (lanes < kLanes) {
                std::memcpy(edge[0], low, static_cast<size_t>(lanes) * 4);
                std::memcpy(edge[1], high, static_cast<size_t>(lanes) * 4);
                low = edge[0], high = edge[1];
            }
            uint8_t *out = to + panel * panel_stride(features) + i * kLanes;
            int shift = static_cast<int>(bit % 32);
            for (int64_t j = i; j < stop; ++j, out += kLanes, shift += s.bits) put(low, high, shift, s.bits, out);
        }
    }
}

// Along the rows: word i of 16 rows at a time.
void fill_rows(const Source &s, int64_t panel, int64_t from, int64_t features, uint8_t *to) {
    const int64_t lanes = std::min<int64_t>(kLanes, s.n - panel * kLanes);
    const uint32_t *rows = s.words + (s.row + panel * kLanes) * s.columns;
    const int per_word = s.layout == VQP_WORDS_K_PADDED ? 32 / s.bits : 0;
    uint32_t words[2][kLanes] = {};
    uint32_t *low = words[0], *high = words[1];
    const auto load = [&](int64_t word, uint32_t *out) {
        for (int64_t l = 0; l < lanes; ++l) out[l] = rows[l * s.columns + word];
    };
    int64_t in_low = -1, in_high = -1;
    for (int64_t i = 0; i < features; ++i, to += kLanes) {
        const int64_t k = s.column + from + i, word = per_word ? k / per_word : k * s.bits / 32;
        const int shift = static_cast<int>(per_word ? k % per_word * s.bits : k * s.bits % 32);
        if (word != in_low) {
            if (word == in_high) {
                std::swap(low, high);
            } else {
                load(word, low);
            }
            in_low = word, in_high = -1;
        }
        if (shift + s.bits > 32) load(in_high = word + 1, high);
        put(low, high, shift, s.bits, to);
    }
}

#if defined(__SSE2__)
// Four words of 4-bit fields, two panels, as fill_interleaved does one word at a time.
inline void put_two_panels(const uint32_t *in, uint8_t *to, int64_t stride) {
    const __m128i w = _mm_loadu_si128(reinterpret_cast<const __m128i *>(in));
    const __m128i mask = _mm_set1_epi32(0xF000F), half = _mm_set1_epi32(0xFFFF);
    __m128i pairs[4], quads[2];
    for (int i = 0; i < 4; ++i) {
        const __m128i field = _mm_and_si128(_mm_srli_epi32(w, 4 * i), mask);
        pairs[i] = _mm_or_si128(field, _mm_srli_epi32(field, 8));
    }
    for (int q = 0; q < 2; ++q) {
        quads[q] = _mm_or_si128(_mm_and_si128(pairs[2 * q], half), _mm_slli_epi32(pairs[2 * q + 1], 16));
    }
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm_unpacklo_epi32(quads[0], quads[1]));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to + stride), _mm_unpackhi_epi32(quads[0], quads[1]));
}
#endif

// Words along n. Channel 2 * i of a word is field i of its low half, channel 2 * i + 1 field i of its high half.
template <int BITS>
void fill_interleaved(const Source &s, int64_t first, int64_t panels, int64_t from, int64_t features, uint8_t *to) {
    constexpr int kWords = BITS / 2, kOut = 8 / BITS;  // words of a panel; 32-bit groups of four codes from each
    constexpr uint32_t kMask = ((1u << BITS) - 1) * 0x10001u;
    const uint32_t *row = s.words + (s.column + from) * s.columns + s.row * BITS / 32;
    const int64_t stride = panel_stride(features);
    for (int64_t i = 0; i < features; ++i, row += s.columns) {
        for (int64_t panel = 0; panel < panels; ++panel) {
            const int64_t channel = (first + panel) * kLanes;
            const uint32_t *in = row + channel * BITS / 32;
#if defined(__SSE2__)
            if (BITS == 4 && panel + 1 < panels && s.n - channel >= 2 * kLanes) {
                put_two_panels(in, to + panel * stride + i * kLanes, stride);
                ++panel;
                continue;
            }
#endif
            uint32_t word[kWords] = {}, out[kWords * kOut];
            if (s.n - channel >= kLanes) {
                std::memcpy(word, in, sizeof word);
            } else {
                std::memcpy(word, in, static_cast<size_t>((s.n - channel) * BITS / 32) * 4);
            }
            for (int w = 0; w < kWords; ++w) {
                for (int q = 0; q < kOut; ++q) {
                    const uint32_t a = word[w] >> (2 * q * BITS) & kMask, b = word[w] >> ((2 * q + 1) * BITS) & kMask;
                    out[w * kOut + q] = ((a | a >> 8) & 0xFFFF) | (b | b >> 8) << 16;
                }
            }
            std::memcpy(to + panel * stride + i * kLanes, out, kLanes);
        }
    }
}

// to[panel][feature][lane].
void fill(const Source &s, int64_t first, int64_t panels, int64_t from, int64_t features, uint8_t *to) {
    if (s.layout == VQP_WORDS_N) {
        (s.bits == 2 ? fill_interleaved<2> : s.bits == 4 ? fill_interleaved<4> : fill_interleaved<8>)(
            s, first, panels, from, features, to);
    } else if (s.layout == VQP_WORDS_K) {
        fill_columns(s, first, panels, from, features, to);
    } else {
        for (int64_t i = 0; i < panels; ++i) fill_rows(s, first + i, from, features, to + i * panel_stride(features));
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
    const auto store = [&](int64_t panel, int64_t from, int64_t features, const uint8_t *in) {
        const int64_t lanes = std::min<int64_t>(kLanes, n - panel * kLanes);
        uint8_t *out = codes + panel * kLanes * k + from;
        int64_t i = 0;
        for (; lanes == kLanes && i + 16 <= features; i += 16) transpose16(in + i * kLanes, kLanes, out + i, k);
        for (; i < features; ++i) {
            for (int64_t l = 0; l < lanes; ++l) out[l * k + i] = in[i * kLanes + l];
        }
    };
    return for_strips(panels, k, kStripColumns, std::max(threads, 1),
                      [&](int64_t first, int64_t count, int64_t from, int64_t features, uint8_t *to) {
                          fill(source, first, count, from, features, to);
                          for (int64_t panel = 0; panel < count; ++panel) {
                              store(first + panel, from, features, to + panel * panel_stride(features));
                          }
                      });
}

}  // extern "C"
