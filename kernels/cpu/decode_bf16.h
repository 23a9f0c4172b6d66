// Codes to bf16 pairs in AVX-512 registers.
//
// Pair J (0 to 15) of a block is one vector: 16 channels x input features (2J, 2J + 1). A shift
// brings the field of all channels into the low bits of every 16-bit word, and a table lookup
// (vpermw: 32 entries, vpermi2w: 64) turns it into bf16; neither looks at higher bits, so nothing
// is masked. The tables subtract `middle`, the zero point of a symmetric weight. All values are
// integers up to 256 or FP8 numbers: exact in bf16.
#pragma once

#include <immintrin.h>

#include <utility>

#include "lanes.h"

namespace {

template <int SHIFT>
VQP_INLINE __m512i shift_right(__m512i v) {
    if constexpr (SHIFT > 0) return _mm512_srli_epi16(v, SHIFT);
    if constexpr (SHIFT < 0) return _mm512_slli_epi16(v, -SHIFT);
    return v;
}

// The vectors of one block, in registers: the empty asm keeps the compiler from loading one anew for
// each of its fields.
template <int BITS>
struct Block {
    __m512i v[BITS];
    VQP_INLINE_MEMBER explicit Block(const uint8_t *p) { load(p, std::make_integer_sequence<int, BITS>{}); }
    template <int... I>
    VQP_INLINE_MEMBER void load(const uint8_t *p, std::integer_sequence<int, I...>) {
        ((v[I] = in_register(_mm512_loadu_si512(p + 64 * I))), ...);
    }
    VQP_INLINE_MEMBER static __m512i in_register(__m512i vector) {
        __asm__("" : "+v"(vector));
        return vector;
    }
};

// The same, each vector loaded where it is used: for products that need the registers for their sums.
struct LazyBlock {
    struct Vectors {
        const uint8_t *p;
        VQP_INLINE_MEMBER __m512i operator[](int i) const { return _mm512_loadu_si512(p + 64 * i); }
        VQP_INLINE_MEMBER __m512i operator*() const { return (*this)[0]; }
        VQP_INLINE_MEMBER Vectors operator+(int i) const { return {p + 64 * i}; }
    } v;
};

// Bits of `mask` from a, the others from b.
VQP_INLINE __m512i select(__m512i mask, __m512i a, __m512i b) { return _mm512_ternarylogic_epi32(mask, a, b, 0xCA); }

// Table of 32 bf16: entry i holds value(i).
template <class F>
VQP_INLINE __m512i table(F value) {
    alignas(64) uint16_t t[32];
    for (int i = 0; i < 32; ++i) t[i] = to_bf16(value(i));
    return _mm512_load_si512(t);
}

// The index of the 3-bit code made of a 2-bit plane and the 1-bit plane: bits 0 and 1 from the first;
// the third at bit 2 (J < 8) or bit 3, as both come with the same shift (see layout.py).
template <int J, class V>
VQP_INLINE __m512i index3(V plane2, V plane1) {
    const __m512i low = shift_right<J % 8 * 2>(plane2[J / 8]);
    return select(_mm512_set1_epi16(3), low, shift_right<J % 8 * 2 - 2>(*plane1));
}

template <int J, class V>
VQP_INLINE __m512i field4(V plane4) {
    return shift_right<J % 4 * 4>(plane4[J / 4]);
}

// Integers held in 16-bit words, exactly, by way of FP32.
VQP_INLINE __m512i integers_to_bf16(__m512i words) {
    const __m512 even = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(words, 16), 16));
    const __m512 odd = _mm512_cvtepi32_ps(_mm512_srai_epi32(words, 16));
    return select(_mm512_set1_epi32(0xFFFF), _mm512_srli_epi32(_mm512_castps_si512(even), 16),
                  _mm512_castps_si512(odd));
}

template <int FORMAT>
struct Decoder;

// One table for the whole code: bits 2 to 5.
//
// Two fields of 2 bits fit the 5 bits of an index: one shift serves two pairs, and the second table
// looks at bits 2 and 3.
template <>
struct Decoder<2> {
    static constexpr int kBits = 2, kTerms = 1;
    __m512i even, odd;
    explicit Decoder(float middle)
        : even(table([&](int i) { return static_cast<float>(i & 3) - middle; })),
          odd(table([&](int i) { return static_cast<float>(i >> 2 & 3) - middle; })) {}
    template <int J, int TERM, class B>
    VQP_INLINE_MEMBER __m512i term(const B &block) const {
        return _mm512_permutexvar_epi16(shift_right<J % 8 / 2 * 4>(block.v[J / 8]), J % 2 ? odd : even);
    }
};

template <>
struct Decoder<3> {
    static constexpr int kBits = 3, kTerms = 1;
    __m512i t;
    explicit Decoder(float middle) : t(table([&](int i) { return static_cast<float>(i & 7) - middle; })) {}
    template <int J, int TERM, class B>
    VQP_INLINE_MEMBER __m512i term(const B &block) const {
        if constexpr (J < 15) {
            return _mm512_permutexvar_epi16(shift_right<J % 5 * 3>(block.v[J / 5]), t);
        } else {
            const __m512i two = select(_mm512_set1_epi16(1), shift_right<15>(block.v[0]), shift_right<14>(block.v[1]));
            return _mm512_permutexvar_epi16(select(_mm512_set1_epi16(3), two, shift_right<13>(block.v[2])), t);
        }
    }
};

template <>
struct Decoder<4> {
    static constexpr int kBits = 4, kTerms = 1;
    __m512i t;
    explicit Decoder(float middle) : t(table([&](int i) { return static_cast<float>(i & 15) - middle; })) {}
    template <int J, int TERM, class B>
    VQP_INLINE_MEMBER __m512i term(const B &block) const {
        return _mm512_permutexvar_epi16(field4<J>(block.v), t);
    }
};

template <>
struct Decoder<5> {
    static constexpr int kBits = 5, kTerms = 1;
    __m512i t;
    explicit Decoder(float middle) : t(table([&](int i) { return static_cast<float>(i) - middle; })) {}
    template <int J, int TERM, class B>
    VQP_INLINE_MEMBER __m512i term(const B &block) const {
        const __m512i high = shift_right<J % 8 * 2 + J / 8 - 4>(block.v[4]);
        return _mm512_permutexvar_epi16(select(_mm512_set1_epi16(15), field4<J>(block.v), high), t);
    }
};

template <>
struct Decoder<6> {
    static constexpr int kBits = 6, kTerms = 1;
    __m512i low, high;
    explicit Decoder(float middle)
        : low(table([&](int i) { return static_cast<float>(i) - middle; })),
          high(table([&](int i) { return static_cast<float>(i + 32) - middle; })) {}
    template <int J, int TERM, class B>
    VQP_INLINE_MEMBER __m512i term(const B &block) const {
        const __m512i top = shift_right<J % 8 * 2 - 4>(block.v[4 + J / 8]);
        return _mm512_permutex2var_epi16(low, select(_mm512_set1_epi16(15), field4<J>(block.v), top), high);
    }
};

// Two terms, low and high bits, whose values add up: cheaper than one exact conversion where each
// weight is used once (m == 1).
template <>
struct Decoder<7> {
    static constexpr int kBits = 7, kTerms = 2;
    __m512i low, high_a, high_b;
    float middle;
    explicit Decoder(float mid)
        : low(table([&](int i) { return static_cast<float>(i & 15); })),
          high_a(table([&](int i) { return static_cast<float>((i & 7) * 16) - mid; })),
          high_b(table([&](int i) { return static_cast<float>(((i & 3) | (i >> 1 & 4)) * 16) - mid; })),
          middle(mid) {}
    template <int J, int TERM, class B>
    VQP_INLINE_MEMBER __m512i term(const B &block) const {
        if constexpr (TERM == 0) return _mm512_permutexvar_epi16(field4<J>(block.v), low);
        return _mm512_permutexvar_epi16(index3<J>(block.v + 4, block.v + 6), J < 8 ? high_a : high_b);
    }
    template <int J, class B>
    VQP_INLINE_MEMBER __m512i whole(const B &block) const {
        const __m512i top = shift_right<J % 8 * 2 - 4>(block.v[4 + J / 8]);
        const __m512i bit = shift_right<J % 8 * 2 + J / 8 - 6>(block.v[6]);
        const __m512i six = select(_mm512_set1_epi16(15), field4<J>(block.v), top);
        const __m512i seven = _mm512_and_si512(select(_mm512_set1_epi16(63), six, bit), _mm512_set1_epi16(127));
        return integers_to_bf16(_mm512_sub_epi16(seven, _mm512_set1_epi16(static_cast<short>(middle))));
    }
};

template <>
struct Decoder<8> {
    static constexpr int kBits = 8, kTerms = 2;
    __m512i low, high;
    float middle;
    explicit Decoder(float mid)
        : low(table([&](int i) { return static_cast<float>(i & 15); })),
          high(table([&](int i) { return static_cast<float>((i & 15) * 16) - mid; })),
          middle(mid) {}
    template <int J, int TERM, class B>
    VQP_INLINE_MEMBER __m512i term(const B &block) const {
        const __m512i v = block.v[J / 2];
        return _mm512_permutexvar_epi16(shift_right<J % 2 * 8 + TERM * 4>(v), TERM ? high : low);
    }
    template <int J, class B>
    VQP_INLINE_MEMBER __m512i whole(const B &block) const {
        const __m512i byte = _mm512_and_si512(shift_right<J % 2 * 8>(block.v[J / 2]), _mm512_set1_epi16(255));
        return integers_to_bf16(_mm512_sub_epi16(byte, _mm512_set1_epi16(static_cast<short>(middle))));
    }
};

// FP8: rebias the exponent by an integer addition; look subnormals up by their mantissa.
template <int MANTISSA>
struct DecoderFp8 {
    static constexpr int kBits = 8, kTerms = 1;
    static constexpr int kRebias = MANTISSA == 3 ? 120 : 112, kFraction = (1 << MANTISSA) - 1;
    __m512i tiny;
    explicit DecoderFp8(float)
        : tiny(table([](int i) {
              return static_cast<float>(i & kFraction) * as_float(static_cast<uint32_t>(kRebias + 1 - MANTISSA) << 23);
          })) {}
    template <int J, int TERM, class B>
    VQP_INLINE_MEMBER __m512i term(const B &block) const {
        const __m512i b = shift_right<J % 2 * 8>(block.v[J / 2]);
        const __m512i shifted = _mm512_slli_epi16(_mm512_and_si512(b, _mm512_set1_epi16(0x7F)), 7 - MANTISSA);
        const __m512i normal = _mm512_add_epi16(shifted, _mm512_set1_epi16(kRebias << 7));
        const __mmask32 is_tiny = _mm512_testn_epi16_mask(b, _mm512_set1_epi16(0x7F & ~kFraction));
        const __m512i magnitude = _mm512_mask_permutexvar_epi16(normal, is_tiny, b, tiny);
        // Sign: bit 7 of the byte to bit 15.
        return select(_mm512_set1_epi16(0x7FFF), magnitude, _mm512_slli_epi16(b, 8));
    }
};
template <>
struct Decoder<9> : DecoderFp8<3> {
    using DecoderFp8::DecoderFp8;
};
template <>
struct Decoder<10> : DecoderFp8<2> {
    using DecoderFp8::DecoderFp8;
};

// Pair J as one vector of bf16.
template <int J, class D, class B>
VQP_INLINE __m512i whole_pair(const D &decoder, const B &block) {
    if constexpr (D::kTerms == 1) {
        return decoder.template term<J, 0>(block);
    } else {
        return decoder.template whole<J>(block);
    }
}

}  // namespace
