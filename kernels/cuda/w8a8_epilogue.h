/* The epilogue of the W8A8 GEMM: zero points, scales, bias, rounding; in the GEMM itself or in the split-K
 * reduction. */
#ifndef VQP_CUDA_W8A8_EPILOGUE_H
#define VQP_CUDA_W8A8_EPILOGUE_H

#include "wna16_params.h"
#include "ptx.h"
#include "w8a8_schedule.h"

namespace vqp {

template <int kKind>
struct Accumulator8 {
  typedef int32_t Type;
};
template <>
struct Accumulator8<kFp8> {
  typedef float Type;
};

VQP_DEVICE uint32_t word_of(int32_t value) { return static_cast<uint32_t>(value); }
VQP_DEVICE uint32_t word_of(float value) { return as_bits(value); }
VQP_DEVICE uint32_t add_words(uint32_t a, uint32_t b, int32_t) { return a + b; }
VQP_DEVICE uint32_t add_words(uint32_t a, uint32_t b, float) { return as_bits(as_float(a) + as_float(b)); }

/* One rounding each: the compiler must not contract a multiplication and an addition to an fma. */
VQP_HD float multiply(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
VQP_HD float add(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

VQP_DEVICE float bias_of(const vqp_cuda_w8a8 &c, int64_t channel) {
  return widen(
      c.bias_dtype, channel, [&](int64_t i) { return load_global(static_cast<const uint16_t *>(c.bias) + i); },
      [&](int64_t i) { return load_global(static_cast<const float *>(c.bias) + i); });
}

/* An output from its accumulator and the scale and zero point of the row. Rounds as reference.w8a8_linear does. */
template <int kKind>
VQP_DEVICE float finish(const vqp_cuda_w8a8 &c, uint32_t word, int64_t channel, float scale, int32_t zero) {
  float value;
  if (kKind == kInt8) {
    if (c.w_sums) word -= static_cast<uint32_t>(zero) * static_cast<uint32_t>(load_global(c.w_sums + channel));
    value = static_cast<float>(static_cast<int32_t>(word));
  } else {
    value = as_float(word);
  }
  if (!c.grouped) value = multiply(value, multiply(scale, load_global(c.w_scales + channel)));
  if (c.bias) value = add(value, bias_of(c, channel));
  return value;
}

/* Store two neighbouring outputs, the second only if it exists. */
VQP_DEVICE void store_pair(const vqp_cuda_w8a8 &c, int64_t row, int64_t channel, float low, float high) {
  const uint32_t pair = c.y_dtype == VQP_CUDA_F16 ? to_pair<Half>(low, high) : to_pair<BFloat16>(low, high);
  uint16_t *const y = static_cast<uint16_t *>(c.y) + row * c.n + channel;
  if (c.n % 2 == 0) return store_global(reinterpret_cast<uint32_t *>(y), pair);
  store_global(y, static_cast<uint16_t>(pair));
  if (channel + 1 < c.n) store_global(y + 1, static_cast<uint16_t>(pair >> 16));
}

/* The split-K reduction without clusters: the same sum in the same order. Each thread handles two channels. */
template <int kKind>
VQP_DEVICE void w8a8_reduce_cta(const W8a8Params &p, int64_t rows) {
  typedef typename Accumulator8<kKind>::Type Sum;
  const vqp_cuda_w8a8 &c = p.call;
  const int64_t channel = 2 * (static_cast<int64_t>(cta_x()) * kThreads + thread_index());
  if (channel >= c.n) return;
  const bool pair = channel + 1 < c.n;
  for (int64_t row = cta_y(); row < c.m; row += grid_dim_y()) {
    uint32_t low = 0, high = 0;
    for (int split = 0; split < p.splits; ++split) {
      const uint32_t *const at = p.partial + (split * rows + row) * c.n + channel;
      low = split ? add_words(low, load_global(at), Sum()) : load_global(at);
      if (pair) high = split ? add_words(high, load_global(at + 1), Sum()) : load_global(at + 1);
    }
    float scale = 0;
    int32_t zero = 0;
    if (c.quantize_x) {
      scale = load_global(p.row_scales + row), zero = load_global(p.row_zeros + row);
    } else if (!c.grouped) {
      scale = load_global(c.x_scales + row * c.x_scale_stride);
      if (c.x_zeros) zero = load_global(c.x_zeros + row * c.x_scale_stride);
    }
    store_pair(c, row, channel, finish<kKind>(c, low, channel, scale, zero),
               pair ? finish<kKind>(c, high, channel + 1, scale, zero) : 0.0f);
  }
}

}  // namespace vqp

#endif
