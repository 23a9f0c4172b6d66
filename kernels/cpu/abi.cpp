// The exported functions: checks, level dispatch, passes over x, tiles over threads.

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "common.h"
#include "isa.h"
#include "parallel.h"

using namespace vqp;

namespace {

int current_level = -1;

int level() {
    if (current_level < 0) current_level = default_level();
    return current_level;
}

// 64-byte aligned memory that a calling thread keeps and grows.
class Arena {
   public:
    ~Arena() { std::free(memory_); }

    char *get(size_t bytes) {
        if (bytes > size_) {
            std::free(memory_);
            size_ = (bytes + 4095) / 4096 * 4096;
            memory_ = static_cast<char *>(std::aligned_alloc(64, size_));
            if (!memory_) size_ = 0;
        }
        return memory_;
    }

   private:
    char *memory_ = nullptr;
    size_t size_ = 0;
};

size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

struct Plan {
    std::vector<Segment> segments;
    std::vector<int64_t> chunk_segments;
};

// Cuts the runs of the groups at chunk boundaries.
void plan_segments(const Wna16 &a, int64_t group_size, const int32_t *starts, Plan &plan) {
    plan.segments.clear();
    plan.chunk_segments.assign(1, 0);
    int64_t chunk_end = std::min<int64_t>(kChunk, a.kp);
    for (int64_t g = 0; g < a.groups; ++g) {
        int64_t at = starts ? starts[g] : g * group_size;
        const int64_t end = starts ? starts[g + 1] : g + 1 == a.groups ? a.kp : (g + 1) * group_size;
        while (at < end) {
            const int64_t stop = std::min(end, chunk_end);
            plan.segments.push_back(
                {static_cast<int32_t>(at), static_cast<int32_t>(stop - at), static_cast<int32_t>(g)});
            at = stop;
            if (at == chunk_end) {
                plan.chunk_segments.push_back(static_cast<int64_t>(plan.segments.size()));
                chunk_end = std::min<int64_t>(chunk_end + kChunk, a.kp);
            }
        }
    }
}

int check_perm(const int32_t *perm, int64_t kp, int64_t groups, int64_t k) {
    const int32_t *starts = perm + kp;
    if (starts[0] != 0 || starts[groups] != kp) return VQP_ELAYOUT;
    for (int64_t g = 0; g < groups; ++g) {
        if (starts[g + 1] < starts[g] || starts[g] % 16) return VQP_ELAYOUT;
    }
    for (int64_t i = 0; i < kp; ++i) {
        if (perm[i] < -1 || perm[i] >= k) return VQP_EPERM;
    }
    return VQP_OK;
}

bool is_activation(int dtype) { return dtype == VQP_F32 || dtype == VQP_BF16 || dtype == VQP_F16; }

const Wna16Kernels &wna16_kernels(int x_dtype, int64_t m) {
#if defined(VQP_HAVE_AMX)
    if (level() >= VQP_AMX && x_dtype == VQP_BF16 && m > wna16_avx512_bf16.few) return wna16_amx;
#endif
#if defined(__x86_64__)
    if (level() >= VQP_AVX512_BF16 && x_dtype == VQP_BF16) return wna16_avx512_bf16;
    if (level() >= VQP_AVX512) return wna16_avx512;
    if (level() >= VQP_AVX2) return wna16_avx2;
#endif
    (void)x_dtype, (void)m;
    return wna16_scalar;
}

const Wna16Kernels &w4a8_kernels() {
#if defined(__x86_64__)
    if (level() >= VQP_AVX512_VNNI) return w4a8_avx512_vnni;
    if (level() >= VQP_AVX512) return w4a8_avx512;
    if (level() >= VQP_AVX2) return w4a8_avx2;
#endif
    return w4a8_scalar;
}

const W8a8Kernels &w8a8_kernels(int64_t m) {
#if defined(VQP_HAVE_AMX)
    if (level() >= VQP_AMX && m > 16) return w8a8_amx;
#endif
#if defined(__x86_64__)
    if (level() >= VQP_AVX512_VNNI) return w8a8_avx512_vnni;
    if (level() >= VQP_AVX512) return w8a8_avx512;
    if (level() >= VQP_AVX2) return w8a8_avx2;
#endif
    (void)m;
    return w8a8_scalar;
}

// Panels per task: at most `most`, fewer where that leaves threads idle; a multiple of `unit`.
int64_t tile_panels(int64_t panels, int64_t unit, int64_t most, int threads) {
    const int64_t share = panels / (static_cast<int64_t>(threads) * 4);
    return std::max(unit, std::min(most, share) / unit * unit);
}

template <class Prepare>
void prepare_all(int64_t m, int64_t k, int threads, Prepare prepare) {
    const int64_t parts = m * k < 32768 ? 1 : std::min<int64_t>(m, 4 * threads);
    parallel_for(threads, parts, [&](int64_t t, int) { prepare(m * t / parts, m * (t + 1) / parts); });
}

// Both GEMMs of integer or FP8 weights in groups; `int8` quantizes x.
int weight_only(bool int8, const void *x, int x_dtype, void *y, int64_t m, const uint8_t *data, int64_t data_bytes,
                const void *scales, int scale_dtype, const void *zeros, int zero_dtype, const int32_t *perm,
                int64_t perm_len, const float *bias, int kind, int bits, int64_t group_size, int64_t groups, int64_t n,
                int64_t k, int threads) {
    if (kind >> 8 != VQP_LAYOUT_VERSION || (kind & 0xFF) > kE5M2 || bits < 2 || bits > 8 || n <= 0 || k <= 0 ||
        groups <= 0 || ((kind & 0xFF) != kInt && (bits != 8 || zeros)) || (int8 && bits > 7)) {
        return VQP_ELAYOUT;
    }
    if (!is_activation(x_dtype) || !is_activation(scale_dtype) ||
        (zeros && zero_dtype != VQP_U8 && zero_dtype != VQP_F32)) {
        return VQP_EDTYPE;
    }
    Wna16 a{};
    a.n = n, a.k = k, a.kind = kind & 0xFF, a.bits = bits, a.groups = groups;
    a.kp = perm ? perm_len - groups - 1 : (k + kBlock - 1) / kBlock * kBlock;
    if (a.kp < k || a.kp % kBlock || data_bytes != a.panels() * a.panel_bytes()) return VQP_ELAYOUT;
    if (perm) {
        if (const int error = check_perm(perm, a.kp, groups, k)) return error;
    } else if (groups > 1 && (group_size % 16 || (k + group_size - 1) / group_size != groups)) {
        return VQP_ELAYOUT;
    }
    if (m <= 0) return VQP_OK;
    threads = std::max(threads, 1);

    static thread_local Plan plan;
    static thread_local Arena arena;
    plan_segments(a, group_size, perm ? perm + a.kp : nullptr, plan);
    a.x_dtype = x_dtype, a.data = data, a.scales = scales, a.scale_dtype = scale_dtype;
    a.zeros = zeros, a.zero_dtype = zero_dtype, a.perm = perm, a.bias = bias;
    a.segments = plan.segments.data(), a.segment_count = static_cast<int64_t>(plan.segments.size());
    a.chunk_segments = plan.chunk_segments.data();

    const Wna16Kernels &kernels = int8 ? w4a8_kernels() : wna16_kernels(x_dtype, m);
    const bool sums = zeros || (kernels.explicit_zeros && a.kind == kInt);
    const int64_t rows = std::min<int64_t>(m, kRows);
    const bool few = m <= kernels.few;
    const int64_t tile = few ? tile_panels(a.panels(), 2, 8, threads)
                                : tile_panels(a.panels(), kernels.group_panels, m > 32 ? 8 : 4, threads);
    const int64_t x_elements = (rows * a.chunks() + kernels.spare_rows) * kChunk;
    const size_t x_bytes = aligned(static_cast<size_t>(x_elements) * static_cast<size_t>(kernels.element_size));
    const size_t sum_bytes = aligned(static_cast<size_t>(rows * a.segment_count) * sizeof(float));
    const size_t scratch_bytes = few ? 0 : aligned(kernels.gemm_scratch(rows, tile));
    const int tables = int8 ? 2 : 1;
    char *memory = arena.get(x_bytes + tables * sum_bytes + scratch_bytes * static_cast<size_t>(threads));
    if (!memory) return VQP_EMEMORY;
    a.xp = memory;
    a.xsum = sums ? reinterpret_cast<float *>(memory + x_bytes) : nullptr;
    a.x_scale = int8 ? reinterpret_cast<float *>(memory + x_bytes + sum_bytes) : nullptr;
    char *scratch = memory + x_bytes + tables * sum_bytes;

    const int64_t row_bytes = x_dtype == VQP_F32 ? 4 : 2, tiles = (a.panels() + tile - 1) / tile;
    for (int64_t row = 0; row < m; row += kRows) {
        a.m = std::min<int64_t>(kRows, m - row);
        a.x = static_cast<const char *>(x) + row * k * row_bytes;
        a.y = static_cast<char *>(y) + row * n * row_bytes;
        prepare_all(a.m, a.kp, threads, [&](int64_t begin, int64_t end) { kernels.prepare(a, begin, end); });
        parallel_for(threads, tiles, [&](int64_t t, int slot) {
            const int64_t begin = t * tile, end = std::min(a.panels(), begin + tile);
            if (few) {
                kernels.few_rows(a, begin, end);
            } else {
                kernels.gemm(a, begin, end, scratch + static_cast<size_t>(slot) * scratch_bytes);
            }
        });
    }
    return VQP_OK;
}

}  // namespace

extern "C" {

int vqp_cpu_abi_version(void) { return VQP_ABI_VERSION; }

int vqp_cpu_max_level(void) { return max_level(); }

int vqp_cpu_level(void) { return level(); }

int vqp_cpu_set_level(int wanted) {
    if (wanted < VQP_SCALAR || wanted > max_level()) return VQP_ECPU;
    if (wanted >= VQP_AMX && !amx_permitted()) return VQP_ESYSTEM;
    current_level = wanted;
    return VQP_OK;
}

int vqp_wna16_linear(const void *x, int x_dtype, void *y, int64_t m, const uint8_t *data, int64_t data_bytes,
                     const void *scales, int scale_dtype, const void *zeros, int zero_dtype, const int32_t *perm,
                     int64_t perm_len, const float *bias, int kind, int bits, int64_t group_size, int64_t groups,
                     int64_t n, int64_t k, int threads) {
    return weight_only(false, x, x_dtype, y, m, data, data_bytes, scales, scale_dtype, zeros, zero_dtype, perm, perm_len,
                       bias, kind, bits, group_size, groups, n, k, threads);
}

int vqp_w4a8_linear(const void *x, int x_dtype, void *y, int64_t m, const uint8_t *data, int64_t data_bytes,
                    const void *scales, int scale_dtype, const void *zeros, int zero_dtype, const int32_t *perm,
                    int64_t perm_len, const float *bias, int kind, int bits, int64_t group_size, int64_t groups,
                    int64_t n, int64_t k, int threads) {
    return weight_only(true, x, x_dtype, y, m, data, data_bytes, scales, scale_dtype, zeros, zero_dtype, perm, perm_len,
                       bias, kind, bits, group_size, groups, n, k, threads);
}

int vqp_w8a8_linear(const void *x, int x_dtype, void *y, int64_t m, const int8_t *data, int64_t data_bytes,
                    const float *w_scale, const int32_t *w_sum, const float *bias, const float *in_scale,
                    const int32_t *in_zero, int symmetric, int64_t n, int64_t k, int threads) {
    if (n <= 0 || k <= 0) return VQP_ELAYOUT;
    if (!is_activation(x_dtype)) return VQP_EDTYPE;
    W8a8 a{};
    a.n = n, a.k = k, a.kp = (k + 63) / 64 * 64;
    if (data_bytes != a.panels() * kLanes * a.kp) return VQP_ELAYOUT;
    if (m <= 0) return VQP_OK;
    threads = std::max(threads, 1);
    a.x_dtype = x_dtype, a.data = data, a.w_scale = w_scale, a.w_sum = w_sum, a.bias = bias;
    a.in_scale = in_scale, a.in_zero = in_zero, a.symmetric = symmetric != 0;

    static thread_local Arena arena;
    const W8a8Kernels &kernels = w8a8_kernels(m);
    const int64_t rows = std::min<int64_t>(m, kRows);
    const int64_t tile = tile_panels(a.panels(), kernels.group_panels, m > 32 ? 8 : 4, threads);
    const size_t x_bytes = aligned(static_cast<size_t>((rows + kernels.spare_rows) * a.kp) * static_cast<size_t>(kernels.element_size));
    const size_t table_bytes = aligned(static_cast<size_t>(rows) * sizeof(float));
    const size_t scratch_bytes = aligned(kernels.gemm_scratch(rows, tile));
    char *memory = arena.get(x_bytes + 2 * table_bytes + scratch_bytes * static_cast<size_t>(threads));
    if (!memory) return VQP_EMEMORY;
    a.xq = memory;
    a.x_scale = reinterpret_cast<float *>(memory + x_bytes);
    a.x_zero = reinterpret_cast<int32_t *>(memory + x_bytes + table_bytes);
    char *scratch = memory + x_bytes + 2 * table_bytes;

    const int64_t row_bytes = x_dtype == VQP_F32 ? 4 : 2, tiles = (a.panels() + tile - 1) / tile;
    for (int64_t row = 0; row < m; row += kRows) {
        a.m = std::min<int64_t>(kRows, m - row);
        a.x = static_cast<const char *>(x) + row * k * row_bytes;
        a.y = static_cast<char *>(y) + row * n * row_bytes;
        prepare_all(a.m, a.kp, threads, [&](int64_t begin, int64_t end) { kernels.prepare(a, begin, end); });
        parallel_for(threads, tiles, [&](int64_t t, int slot) {
            kernels.gemm(a, t * tile, std::min(a.panels(), (t + 1) * tile),
                         scratch + static_cast<size_t>(slot) * scratch_bytes);
        });
    }
    return VQP_OK;
}

}  // extern "C"
