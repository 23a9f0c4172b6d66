/* Global to shared memory for the W8A8 GEMM: tiles of codes, block scales, and the rows of a 16-bit x. */
#ifndef VQP_CUDA_W8A8_LOADER_H
#define VQP_CUDA_W8A8_LOADER_H

#include "w8a8_schedule.h"

namespace vqp {

template <int kTokens, bool kGrouped, bool kFused>
struct W8a8Loader {
  static constexpr int kPieces = kRow / 16; /* 16-byte pieces per row of a tile */

  const W8a8Params &p;
  const uint8_t *w, *x;       /* this thread's first piece of each; its others are 32 rows apart */
  int w_rows, x_rows;         /* rows that exist, from this thread's first one */
  const float *scales;        /* with block scales: this thread's four, or null */

  VQP_DEVICE W8a8Loader(const W8a8Params &params, int m_tile, int n_tile) : p(params) {
    const vqp_cuda_w8a8 &c = p.call;
    const int thread = thread_index(), row = thread / kPieces, piece = thread % kPieces;
    const int64_t channel = static_cast<int64_t>(n_tile) * kTileN, token = static_cast<int64_t>(m_tile) * kTokens;
    w_rows = static_cast<int>(c.n - channel < kTileN ? c.n - channel : kTileN) - row;
    w = c.w + (w_rows > 0 ? channel + row : channel) * c.kp + 16 * piece;
    x_rows = static_cast<int>(c.m - token < kTokens ? c.m - token : kTokens) - row;
    x = static_cast<const uint8_t *>(c.x) + (x_rows > 0 ? token + row : token) * c.x_stride + 16 * piece;
    scales = kGrouped && c.grouped && 4 * thread < kTokens && token + 4 * thread < c.x_scale_stride
                 ? c.x_scales + token + 4 * thread
                 : nullptr;
  }

  VQP_DEVICE bool inside(int tile) const { return tile * kRow + 16 * (thread_index() % kPieces) < p.call.kp; }

  VQP_DEVICE void copy_weights(char *stage, int tile) const {
    const int row = thread_index() / kPieces, piece = thread_index() % kPieces;
    const bool in_k = inside(tile);
    VQP_UNROLL
    for (int j = 0; j < kTileN / 32; ++j) {
      const bool valid = in_k && 32 * j < w_rows;
      const void *from = valid ? w + 32 * j * p.call.kp + static_cast<int64_t>(tile) * kRow : p.call.w;
      cp_async(stage + tile_offset(row + 32 * j, piece), from, valid);
    }
  }

  VQP_DEVICE void copy_x(char *stage, int tile) const {
    if (kFused) return;
    const int row = thread_index() / kPieces, piece = thread_index() % kPieces;
    const bool in_k = inside(tile);
    VQP_UNROLL
    for (int j = 0; j < (kTokens + 31) / 32; ++j) {
      if (kTokens < 32 && row >= kTokens) break;
      const bool valid = in_k && 32 * j < x_rows;
      const void *from = valid ? x + 32 * j * p.call.x_stride + static_cast<int64_t>(tile) * kRow : p.call.x;
      cp_async(stage + p.x_offset + tile_offset(row + 32 * j, piece), from, valid);
    }
    if (kGrouped && p.call.grouped && 4 * thread_index() < kTokens) {
      const void *from = scales ? scales + tile * p.call.x_scale_stride : p.call.x_scales;
      cp_async(stage + p.scales_offset + 16 * thread_index(), from, scales != nullptr);
    }
  }
};

/* Quantize the CTA's rows of a 16-bit x into shared memory: the codes for the K tiles of `range`, and the scales. The
 * threads are divided evenly among the rows; without a static scale they read the whole row first for its range. */
constexpr int kBatch = 8;

template <class T, int kKind, int kTokens>
VQP_DEVICE void quantize_into_shared(const W8a8Params &p, Range range, char *shared) {
  const vqp_cuda_w8a8 &c = p.call;
  const int rows = static_cast<int>(c.m); /* one tile of tokens */
  QuantizeParams q = {};
  q.call.x = c.x;
  q.call.in_scale = c.x_scales;
  q.call.in_zero = c.x_zeros;
  q.call.k = c.k;
  q.vector = p.vector;
  const bool asymmetric = !c.x_scales && !c.symmetric;
  q.row_threads = kThreads;
  while (q.row_threads > 32 && kThreads / q.row_threads < rows) q.row_threads /= 2;
  const int thread = thread_index() % q.row_threads, rows_at_once = kThreads / q.row_threads;
  float *const scales = reinterpret_cast<float *>(shared + p.table_offset), *const ranges = scales + 2 * kTokens;
  int32_t *const zeros = reinterpret_cast<int32_t *>(scales + kTokens);
  const int first = range.begin * (kRow / kChunk), last = range.end * (kRow / kChunk);
  const int all = static_cast<int>(ceil_div(c.k, kChunk));
  for (int start = 0; start < kTokens; start += rows_at_once) {
    const int row = start + thread_index() / q.row_threads;
    const bool exists = row < rows;
    const uint16_t *const x = static_cast<const uint16_t *>(c.x) + (exists ? row * c.x_stride : 0);
    ValueRange extent;
    if (!c.x_scales && start < rows) {
      /* Eight loads in flight hide their latency; more would not leave registers for two CTAs per SM. */
      for (int base = thread; exists && base < all; base += kBatch * q.row_threads) {
        Chunk batch[kBatch];
        VQP_UNROLL
        for (int j = 0; j < kBatch; ++j)
          if (base + j * q.row_threads < all) batch[j] = read_chunk(q, x, base + j * q.row_threads);
        VQP_UNROLL
        for (int j = 0; j < kBatch; ++j)
          if (base + j * q.row_threads < all) {
            float values[kChunk];
            widen_chunk<T>(batch[j], values);
            VQP_UNROLL
            for (int i = 0; i < kChunk; ++i) extend_range(extent, values[i], asymmetric);
          }
      }
      if (start) syncthreads(); /* the ranges of the previous rows have been read */
      reduce_row(extent, q.row_threads, ranges);
    }
    const Quantizer quantizer = quantizer_of<kKind>(q.call, extent, asymmetric);
    if (thread == 0 && row < kTokens) {
      store_shared(scales + row, exists ? quantizer.scale : 0.0f);
      store_shared(zeros + row, exists ? quantizer.zero : 0);
    }
    for (int chunk = first + thread; row < kTokens && chunk < last; chunk += q.row_threads) {
      Codes codes = {{0, 0}};
      if (exists && chunk < all) {
        float values[kChunk];
        widen_chunk<T>(read_chunk(q, x, chunk), values);
        codes = {{four_codes<kKind, false>(quantizer, values), four_codes<kKind, false>(quantizer, values + 4)}};
        clear_padding(codes, static_cast<int64_t>(chunk) * kChunk, c.k);
      }
      const int tile = (chunk - first) / (kRow / kChunk), inside = chunk % (kRow / kChunk);
      store_shared(
          shared + p.codes_offset + tile * kTokens * kRow + tile_offset(row, inside / 2) + 8 * (inside & 1), codes);
    }
  }
}

}  // namespace vqp

#endif
