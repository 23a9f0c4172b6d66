// Vectors of VQP_WIDTH 32-bit lanes in GCC vector extensions; the ISA unit sets VQP_WIDTH to 4, 8 or 16.
#pragma once

#include <cstring>
#include <type_traits>
#include <utility>

#include "lanes.h"

namespace {

constexpr int kWidth = VQP_WIDTH;
constexpr int kParts = kLanes / kWidth;  // vectors per panel
typedef float vf __attribute__((vector_size(kWidth * 4)));
typedef int32_t vi __attribute__((vector_size(kWidth * 4)));
typedef uint32_t vu __attribute__((vector_size(kWidth * 4)));

template <class V>
VQP_INLINE V load(const void *p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
template <class V>
VQP_INLINE void store(void *p, V v) {
    std::memcpy(p, &v, sizeof v);
}

// f(integral_constant<int, I>) for every I of the sequence, unrolled at compile time.
template <class F, int... I>
VQP_INLINE void unrolled(std::integer_sequence<int, I...>, F &&f) {
    (f(std::integral_constant<int, I>{}), ...);
}

}  // namespace
