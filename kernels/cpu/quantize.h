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

}  // namespace
