// Activations to INT8, in FP32 arithmetic that rounds as reference.py does. No contraction to FMA.
#pragma once

#include "lanes.h"

namespace {

// Round half to even; |v| <= 2^22.
VQP_INLINE float round_even(float v) { return (v + 12582912.0f) - 12582912.0f; }

// NaN becomes `low`.
VQP_INLINE float clamp(float v, float low, float high) {
    const float raised = v > low ? v : low;
    return raised < high ? raised : high;
}

// clamp(round_half_even(x / scale) + zero, -128, 127), as reference.quantize_activation; |zero| <= 128.
VQP_INLINE int32_t quantize(float x, float scale, float zero) {
    return static_cast<int32_t>(clamp(round_even(clamp(x / scale, -512.0f, 512.0f)) + zero, -128.0f, 127.0f));
}

#if defined(__AVX512BW__)
// Sixteen of quantize(): vmaxps and vminps give their second operand where the first is NaN, as clamp does.
VQP_INLINE __m512i quantize16(__m512 x, __m512 scale, __m512 zero) {
    const auto clamped = [](__m512 v, float low, float high) __attribute__((always_inline)) {
        return _mm512_min_ps(_mm512_max_ps(v, _mm512_set1_ps(low)), _mm512_set1_ps(high));
    };
    const __m512 magic = _mm512_set1_ps(12582912.0f), ratio = clamped(_mm512_div_ps(x, scale), -512.0f, 512.0f);
    const __m512 rounded = _mm512_sub_ps(_mm512_add_ps(ratio, magic), magic);
    return _mm512_cvttps_epi32(clamped(_mm512_add_ps(rounded, zero), -128.0f, 127.0f));
}
#endif

}  // namespace
