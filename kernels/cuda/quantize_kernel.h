/* Activation quantization: BF16 or FP16 rows to INT8 or FP8 codes and scales, in one pass over memory.
 *
 *   rows     A CTA of 256 threads processes 1, 2, 4 or 8 rows. A thread keeps its 16-byte chunks of a row in registers
 *            (up to 4) or in shared memory. The threads of a row reduce its range by shuffles and shared memory, and
 *            write the codes in pieces of 8 bytes. A row that does not fit is read twice.
 *   groups   Half a warp processes a group of 128 columns, and a CTA the same group of 16 rows, so that their scales,
 *            stored [group][row], are written together.
 *
 * The GEMM that follows may start at once: it loads its first weights, then waits for the codes.
 * quantize_math.h defines the codes. Columns from k up to q_stride become 0.
 */
#ifndef VQP_CUDA_QUANTIZE_KERNEL_H
#define VQP_CUDA_QUANTIZE_KERNEL_H

#include "layout.h"
#include "ptx.h"
#include "quantize_math.h"
#include "tiles.h"

namespace vqp {

constexpr int kChunk = 8; /* activations in 16 bytes */
constexpr int kKept = 4;  /* chunks that a thread keeps in registers */
constexpr int kGroupLanes = kQuantizeGroup / kChunk;
constexpr int kGroupRows = kThreads / kGroupLanes;
constexpr int kRangeBytes = kThreads / 32 * 2 * 4; /* of shared memory, for the range of each warp */

struct Chunk {
  uint32_t v[4];
};
struct alignas(8) Codes {
  uint32_t v[2];
};

struct QuantizeParams {
  vqp_cuda_quantize call;
  int chunks, row_threads; /* per row; row_threads is 32, 64, 128 or 256 */
  int vector;              /* whole chunks of x may be read as 16 bytes */
  int in_smem;           /* the row is kept in shared memory until its scale is known: beyond kKept chunks per thread */
};

inline bool in_registers(const QuantizeParams &p) { return p.chunks <= kKept * p.row_threads; }

inline QuantizeParams quantize_params(const vqp_cuda_quantize &c, int shared_limit) {
  QuantizeParams p = {};
  p.call = c;
  p.chunks = static_cast<int>(c.q_stride / kChunk);
  p.row_threads = 32;
  while (p.row_threads < kThreads && kKept * p.row_threads < p.chunks) p.row_threads *= 2;
  p.vector = c.x_stride % kChunk == 0 && !(reinterpret_cast<uintptr_t>(c.x) & 15);
  p.in_smem = !c.in_scale && !c.group_size && !in_registers(p) && kRangeBytes + 16 * p.chunks <= shared_limit;
  return p;
}

inline int quantize_smem_bytes(const QuantizeParams &p) { return kRangeBytes + (p.in_smem ? 16 * p.chunks : 0); }

inline int64_t quantize_ctas(const QuantizeParams &p) {
  if (p.call.group_size) return ceil_div(p.call.k, kQuantizeGroup) * ceil_div(p.call.m, kGroupRows);
  return ceil_div(p.call.m, kThreads / p.row_threads);
}

inline int check_quantize(const vqp_cuda_quantize &c) {
  if (c.m < 0 || c.k < 1 || c.q_stride < c.k || c.q_stride % 16 || c.q_stride >= c.k + 16) return VQP_CUDA_ESHAPE;
  if (c.k > (1 << 20) || c.m > (1 << 24)) return VQP_CUDA_ESHAPE;
  if (c.x_dtype != VQP_CUDA_F16 && c.x_dtype != VQP_CUDA_BF16) return VQP_CUDA_EDTYPE;
  if (c.kind != kInt8 && c.kind != kFp8) return VQP_CUDA_EDTYPE;
  if (c.kind == kFp8 && (c.zeros || c.in_zero)) return VQP_CUDA_EDTYPE;
  if (c.in_scale ? c.scales || c.zeros || c.group_size : !c.scales) return VQP_CUDA_ESHAPE;
  if (c.in_zero && !c.in_scale) return VQP_CUDA_ESHAPE;
  if (c.group_size && (c.group_size != kQuantizeGroup || c.kind != kFp8 || c.scale_stride < c.m))
    return VQP_CUDA_ESHAPE;
  return reinterpret_cast<uintptr_t>(c.q) & 15 ? VQP_CUDA_EALIGN : VQP_CUDA_OK;
}

/* The bits of chunk `chunk` of a row; zeros past k. */
VQP_DEVICE Chunk read_chunk(const QuantizeParams &p, const uint16_t *row, int chunk) {
  const int64_t first = static_cast<int64_t>(chunk) * kChunk;
  Chunk out;
  if (p.vector && first + kChunk <= p.call.k) {
    load_coherent(out.v, row + first);
    return out;
  }
  VQP_UNROLL
  for (int i = 0; i < 4; ++i) {
    const int64_t at = first + 2 * i;
    const uint32_t low = at < p.call.k ? load_coherent(row + at) : 0;
    const uint32_t high = at + 1 < p.call.k ? load_coherent(row + at + 1) : 0;
    out.v[i] = low | high << 16;
  }
  return out;
}

VQP_DEVICE void store_chunk(char *shared, const Chunk &chunk) {
  store_shared(shared, Codes{{chunk.v[0], chunk.v[1]}});
  store_shared(shared + 8, Codes{{chunk.v[2], chunk.v[3]}});
}
VQP_DEVICE Chunk load_chunk(const char *shared) {
  const Codes low = load_shared<Codes>(shared), high = load_shared<Codes>(shared + 8);
  return {{low.v[0], low.v[1], high.v[0], high.v[1]}};
}

template <class T>
VQP_DEVICE void widen_chunk(const Chunk &chunk, float (&values)[kChunk]) {
  VQP_UNROLL
  for (int i = 0; i < 4; ++i) {
    values[2 * i] = to_float<T>(chunk.v[i] & 0xFFFF);
    values[2 * i + 1] = to_float<T>(chunk.v[i] >> 16);
  }
}

template <class T>
VQP_DEVICE void extend_range(const QuantizeParams &p, const Chunk &chunk, ValueRange &extent) {
  float values[kChunk];
  widen_chunk<T>(chunk, values);
  const bool asymmetric = p.call.zeros;
  VQP_UNROLL
  for (int i = 0; i < kChunk; ++i) extend_range(extent, values[i], asymmetric);
}

/* Columns from k on get code 0. Quantizing a zero would give the zero point. */
VQP_DEVICE void clear_padding(Codes &codes, int64_t first, int64_t k) {
  if (first + kChunk <= k) return;
  VQP_UNROLL
  for (int i = 0; i < kChunk; ++i)
    if (first + i >= k) codes.v[i >> 2] &= ~(0xFFu << 8 * (i & 3));
}

template <class T, int kKind, bool kGroup>
VQP_DEVICE void write_codes(const QuantizeParams &p, const Quantizer &q, const Chunk &chunk, int index, uint8_t *row) {
  float values[kChunk];
  widen_chunk<T>(chunk, values);
  const int64_t first = static_cast<int64_t>(index) * kChunk;
  Codes codes = {{four_codes<kKind, kGroup>(q, values), four_codes<kKind, kGroup>(q, values + 4)}};
  clear_padding(codes, first, p.call.k);
  store_global(reinterpret_cast<Codes *>(row + first), codes);
}

/* Reduce the range over `lanes` neighbouring lanes, a power of two. All lanes of the warp take part. */
VQP_DEVICE void reduce_lanes(ValueRange &e, int lanes) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) {
    e.high = fmaxf(e.high, shfl_xor(e.high, mask));
    e.low = fminf(e.low, shfl_xor(e.low, mask));
  }
}

/* Reduce the range over the threads of a row, a multiple of 32. `shared`: scratch of 2 floats per warp. */
VQP_DEVICE void reduce_row(ValueRange &e, int row_threads, float *shared) {
  reduce_lanes(e, 32);
  const int thread = thread_index(), warps = row_threads / 32, first = thread / row_threads * warps;
  if (thread % 32 == 0) {
    store_shared(shared + 2 * (thread / 32), e.low);
    store_shared(shared + 2 * (thread / 32) + 1, e.high);
  }
  syncthreads();
  for (int w = first; w < first + warps; ++w) {
    e.low = fminf(e.low, load_shared<float>(shared + 2 * w));
    e.high = fmaxf(e.high, load_shared<float>(shared + 2 * w + 1));
  }
}

/* Static with in_scale, otherwise from the range. */
template <int kKind>
VQP_DEVICE Quantizer quantizer_of(const vqp_cuda_quantize &c, const ValueRange &e, bool asymmetric) {
  if constexpr (kKind == kFp8) return c.in_scale ? static_fp8(load_global(c.in_scale)) : dynamic_fp8(e);
  if (!c.in_scale) return dynamic_int8(e, asymmetric);
  return static_int8(load_global(c.in_scale), c.in_zero, c.in_zero ? load_global(c.in_zero) : 0);
}

template <class T, int kKind, bool kRegisters>
VQP_DEVICE void quantize_rows_cta(const QuantizeParams &p) {
  const vqp_cuda_quantize &c = p.call;
  griddep_launch_dependents();
  const int thread = thread_index() % p.row_threads, step = p.row_threads;
  const int64_t row = static_cast<int64_t>(cta_x()) * (kThreads / step) + thread_index() / step;
  const bool exists = row < c.m;
  const int chunks = exists ? p.chunks : 0;
  const uint16_t *const x = static_cast<const uint16_t *>(c.x) + (exists ? row * c.x_stride : 0);
  uint8_t *const out = c.q + (exists ? row * c.q_stride : 0);
  char *const waiting = shared_memory() + kRangeBytes; /* a thread reads back only what it wrote: no barrier */

  Chunk kept[kKept];
  if (kRegisters)
    VQP_UNROLL
    for (int j = 0; j < kKept; ++j)
      if (thread + j * step < chunks) kept[j] = read_chunk(p, x, thread + j * step);
  ValueRange extent;
  if (!c.in_scale) {
    if (kRegisters) {
      VQP_UNROLL
      for (int j = 0; j < kKept; ++j)
        if (thread + j * step < chunks) extend_range<T>(p, kept[j], extent);
    } else {
      VQP_UNROLL_BY(4)
      for (int chunk = thread; chunk < chunks; chunk += step) {
        const Chunk read = read_chunk(p, x, chunk);
        extend_range<T>(p, read, extent);
        if (p.in_smem) store_chunk(waiting + 16 * chunk, read);
      }
    }
    reduce_row(extent, step, reinterpret_cast<float *>(shared_memory()));
  }
  const Quantizer q = quantizer_of<kKind>(c, extent, c.zeros);
  if (exists && thread == 0 && c.scales) store_global(c.scales + row, q.scale);
  if (exists && thread == 0 && c.zeros) store_global(c.zeros + row, q.zero);
  if (kRegisters) {
    VQP_UNROLL
    for (int j = 0; j < kKept; ++j)
      if (thread + j * step < chunks) write_codes<T, kKind, false>(p, q, kept[j], thread + j * step, out);
  } else {
    VQP_UNROLL_BY(2)
    for (int chunk = thread; chunk < chunks; chunk += step) {
      const Chunk read = p.in_smem ? load_chunk(waiting + 16 * chunk) : read_chunk(p, x, chunk);
      write_codes<T, kKind, false>(p, q, read, chunk, out);
    }
  }
}

template <class T>
VQP_DEVICE void quantize_groups_cta(const QuantizeParams &p) {
  const vqp_cuda_quantize &c = p.call;
  griddep_launch_dependents();
  const int groups = static_cast<int>(ceil_div(c.k, kQuantizeGroup)), group = cta_x() % groups;
  const int64_t row = static_cast<int64_t>(cta_x() / groups) * kGroupRows + thread_index() / kGroupLanes;
  const int chunk = group * kGroupLanes + thread_index() % kGroupLanes;
  const bool exists = row < c.m && chunk < p.chunks;
  Chunk kept = {};
  ValueRange extent;
  if (exists) {
    kept = read_chunk(p, static_cast<const uint16_t *>(c.x) + row * c.x_stride, chunk);
    extend_range<T>(p, kept, extent);
  }
  reduce_lanes(extent, kGroupLanes);
  const Quantizer q = group_fp8(extent);
  if (exists) write_codes<T, kFp8, true>(p, q, kept, chunk, c.q + row * c.q_stride);
  if (exists && thread_index() % kGroupLanes == 0) store_global(c.scales + group * c.scale_stride + row, q.scale);
}

}  // namespace vqp

#endif
