// The weight-only GEMM with bf16 activations by vdpbf16ps: pairs (k, k + 1), exact products, FP32 accumulation.

#include "gemm_bf16.h"

namespace {

constexpr int kFewRows = 16;
constexpr int kSpareRows = 8;  // whole blocks of eight rows are read
// Prefetch distance of the weights, in bytes: into L1 where panels share rows of x, which is about
// 100 ns at 30 GB/s; into L2, past the next page of 4 KB, where the weights of one panel stream by.
constexpr int kAhead = 3072, kFarAhead = 8192;

VQP_INLINE __m512 load_table(const void *p, int dtype, int64_t at) {
    if (dtype != VQP_U8) return load_vector(p, dtype, at);
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(
        _mm_loadu_si128(reinterpret_cast<const __m128i *>(static_cast<const uint8_t *>(p) + at))));
}

// Panels that share the rows of x: one row is a stream of weights and needs nothing shared.
constexpr int shared_panels(int rows) { return rows >= 4 ? 2 : 1; }

// Independent sums per row and panel: together at least eight, which hides the latency of vdpbf16ps.
constexpr int chains(int rows) { return rows == 1 ? 8 : rows == 2 ? 4 : rows <= 4 ? 2 : 1; }

template <int ROWS>
struct Sums {
    static constexpr int kPanels = shared_panels(ROWS), kChains = chains(ROWS);
    __m512 of[kPanels][ROWS][kChains];
};

// Sum of the chains from FIRST on, COUNT of them, by halves.
template <int FIRST, int N, int COUNT = N>
VQP_INLINE __m512 add_chains(const __m512 (&sum)[N]) {
    if constexpr (COUNT == 1) {
        return sum[FIRST];
    } else {
        return _mm512_add_ps(add_chains<FIRST, N, COUNT / 2>(sum), add_chains<FIRST + COUNT / 2, N, COUNT / 2>(sum));
    }
}

// ISSUE-th pair of the block, pair J, times ROWS rows of x. The two terms of wide codes are worth
// adding separately only where each is used once or twice.
template <int J, int ISSUE, int ROWS, class D, class B>
VQP_INLINE void add_pair(const D &decoder, const B *block, const Bits *x, Sums<ROWS> &sum) {
    constexpr int panels = shared_panels(ROWS), n = chains(ROWS), chain = ISSUE % n, other = (ISSUE + n / 2) % n;
    constexpr bool terms = D::kTerms == 2 && ROWS <= 2;
    __m512i first[panels], second[panels];
    for (int p = 0; p < panels; ++p) {
        first[p] = terms ? decoder.template term<J, 0>(block[p]) : whole_pair<J>(decoder, block[p]);
        if constexpr (terms) second[p] = decoder.template term<J, 1>(block[p]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
        const __m512i xv = pair_at(x + r * kChunk + 2 * J);
        for (int p = 0; p < panels; ++p) {
            sum.of[p][r][chain] = dot(sum.of[p][r][chain], first[p], xv);
            if constexpr (terms) sum.of[p][r][other] = dot(sum.of[p][r][other], second[p], xv);
        }
    }
}

// Sums of products of one segment: [panel][row].
template <int ROWS>
using Partial = __m512[shared_panels(ROWS)][ROWS];

// Pairs BEGIN to END of whole blocks; `panel_bytes` lie between the panels. In a whole block of one
// panel, pairs i and i + 8 follow each other because they take their 1-bit plane from the same
// shifted vector; of several panels, the pairs of a vector do, which need fewer registers.
template <int BEGIN, int END, int ROWS, class D>
VQP_INLINE void dot_blocks(const D &decoder, const uint8_t *data, int64_t panel_bytes, const Bits *x, int64_t blocks,
                           Partial<ROWS> &partial) {
    constexpr int panels = shared_panels(ROWS);
    constexpr bool paired = END - BEGIN == 16 && panels == 1;
    Sums<ROWS> sum;
    for (int p = 0; p < panels; ++p) {
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            for (int c = 0; c < chains(ROWS); ++c) sum.of[p][r][c] = _mm512_setzero_ps();
        }
    }
    for (int64_t b = 0; b < blocks; ++b, data += 64 * D::kBits, x += kBlock) {
        for (int p = 0; p < panels; ++p) {
            const char *line = reinterpret_cast<const char *>(data) + p * panel_bytes;
            for (int i = 0; i < D::kBits; ++i, line += 64) {
                if constexpr (panels == 1) {
                    _mm_prefetch(line + kFarAhead, _MM_HINT_T1);
                } else {
                    _mm_prefetch(line + kAhead, _MM_HINT_T0);
                }
            }
        }
        const auto add_block = [&](const auto *block) __attribute__((always_inline)) {
#define VQP_PAIR(ISSUE)                                                                \
    if constexpr (constexpr int j = paired ? ISSUE / 2 + ISSUE % 2 * 8 : BEGIN + ISSUE; \
                  ISSUE < END - BEGIN)                                                 \
        add_pair<j, ISSUE, ROWS>(decoder, block, x, sum);
            VQP_PAIR(0) VQP_PAIR(1) VQP_PAIR(2) VQP_PAIR(3) VQP_PAIR(4) VQP_PAIR(5) VQP_PAIR(6) VQP_PAIR(7)
            VQP_PAIR(8) VQP_PAIR(9) VQP_PAIR(10) VQP_PAIR(11) VQP_PAIR(12) VQP_PAIR(13) VQP_PAIR(14) VQP_PAIR(15)
#undef VQP_PAIR
        };
        if constexpr (panels == 1) {
            const Block<D::kBits> block(data);
            add_block(&block);
        } else {
            const LazyBlock block[panels] = {{{data}}, {{data + panel_bytes}}};
            add_block(block);
        }
    }
    for (int p = 0; p < panels; ++p) {
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) partial[p][r] = _mm512_add_ps(partial[p][r], add_chains<0>(sum.of[p][r]));
    }
}

// Half a block of one row, pairs FIRST to FIRST + 7.
template <int FIRST, class D>
__attribute__((noinline)) __m512 dot_half(const D &decoder, const uint8_t *data, const Bits *x) {
    Partial<1> partial = {{_mm512_setzero_ps()}};
    dot_blocks<FIRST, FIRST + 8, 1>(decoder, data, 0, x, 1, partial);
    return partial[0][0];
}

// Half of block `b`, where groups are an odd multiple of 16: rare, and kept small.
template <int FIRST, int ROWS, class D>
VQP_INLINE void add_half(const D &decoder, const uint8_t *data, int64_t panel_bytes, const Bits *x, int64_t b,
                         Partial<ROWS> &partial) {
    for (int p = 0; p < shared_panels(ROWS); ++p) {
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            const uint8_t *block = data + p * panel_bytes + b * 64 * D::kBits;
            partial[p][r] = _mm512_add_ps(partial[p][r], dot_half<FIRST>(decoder, block, x + r * kChunk + b * kBlock));
        }
    }
}

// Row `row` of x at feature 0, for use within `segment`: x lies in chunks of all rows.
VQP_INLINE const Bits *row_of(const Wna16 &a, const Segment &segment, int64_t row) {
    const int64_t chunk = segment.start / kChunk * kChunk;
    return static_cast<const Bits *>(a.xp) + chunk * a.m + row * kChunk - chunk;
}

// The whole and half blocks of a segment.
template <int ROWS, class D>
VQP_INLINE void add_blocks(const D &decoder, const uint8_t *data, int64_t panel_bytes, const Bits *x,
                           const Segment &segment, Partial<ROWS> &partial) {
    const int64_t end = segment.start + segment.len, first = (segment.start + 16) / kBlock;
    dot_blocks<0, 16, ROWS>(decoder, data + first * 64 * D::kBits, panel_bytes, x + first * kBlock, end / kBlock - first,
                            partial);
    if (segment.start % kBlock) {
        add_half<8, ROWS>(decoder, data, panel_bytes, x, segment.start / kBlock, partial);
    }
    if (end % kBlock) add_half<0, ROWS>(decoder, data, panel_bytes, x, end / kBlock, partial);
}

// Rows [row, row + count) of x times segments [begin, end) of the panels from `panel` on, `step` (0 or 1) apart,
// scaled and added to total[panel][kFewRows][16]. Only `count` of the ROWS rows are real: the others
// are dropped.
//
// Not inlined: each number of rows needs the whole register file.
template <int ROWS, class D>
__attribute__((noinline)) void add_segments(const Wna16 &a, const D &shared_decoder, int64_t panel, int64_t step,
                                            int64_t begin, int64_t end, int64_t row, int64_t count, float *total) {
    const D decoder = shared_decoder;  // a local copy, so that its tables stay in registers
    constexpr int panels = shared_panels(ROWS);
    for (int64_t s = begin; s < end; ++s) {
        const Segment segment = a.segments[s];
        Partial<ROWS> partial;
        for (int p = 0; p < panels; ++p) {
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) partial[p][r] = _mm512_setzero_ps();
        }
        add_blocks<ROWS>(decoder, a.data + panel * a.panel_bytes(), step * a.panel_bytes(), row_of(a, segment, row),
                         segment, partial);
        for (int p = 0; p < panels; ++p) {
            const int64_t table = ((panel + p * step) * a.groups + segment.group) * kLanes;
            const __m512 scale = load_table(a.scales, a.scale_dtype, table);
            const __m512 zero = a.xsum ? load_table(a.zeros, a.zero_dtype, table) : _mm512_setzero_ps();
            float *to = total + p * kFewRows * kLanes + row * kLanes;
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {
                if (r < count) {
                    __m512 v = partial[p][r];
                    if (a.xsum) v = _mm512_fnmadd_ps(zero, _mm512_set1_ps(a.xsum[(row + r) * a.segment_count + s]), v);
                    _mm512_store_ps(to + r * kLanes, _mm512_fmadd_ps(scale, v, _mm512_load_ps(to + r * kLanes)));
                }
            }
        }
    }
}

// One or two rows: the sums of a panel stay in registers from its first segment to its last, all in one function,
// so that the core runs ahead from segment to segment and the weights are one stream.
template <int ROWS, class D>
__attribute__((noinline)) void stream_rows(const Wna16 &a, const D &shared_decoder, int64_t panel_begin,
                                           int64_t panel_end) {
    const D decoder = shared_decoder;  // a local copy, so that its tables stay in registers
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
        const uint8_t *data = a.data + panel * a.panel_bytes();
        __m512 total[ROWS];
        for (int r = 0; r < ROWS; ++r) total[r] = _mm512_setzero_ps();
        for (int64_t s = 0; s < a.segment_count; ++s) {
            const Segment segment = a.segments[s];
            Partial<ROWS> partial = {};
            add_blocks<ROWS>(decoder, data, 0, row_of(a, segment, 0), segment, partial);
            const int64_t table = (panel * a.groups + segment.group) * kLanes;
            const __m512 scale = load_table(a.scales, a.scale_dtype, table);
            const __m512 zero = a.xsum ? load_table(a.zeros, a.zero_dtype, table) : _mm512_setzero_ps();
            for (int r = 0; r < ROWS; ++r) {
                __m512 v = partial[0][r];
                if (a.xsum) v = _mm512_fnmadd_ps(zero, _mm512_set1_ps(a.xsum[r * a.segment_count + s]), v);
                total[r] = _mm512_fmadd_ps(scale, v, total[r]);
            }
        }
        for (int r = 0; r < ROWS; ++r) {
            alignas(64) float out[kLanes];
            _mm512_store_ps(out, total[r]);
            finish16(a.y, a.x_dtype, r, panel, a.n, a.bias, out);
        }
    }
}

// At most kFewRows rows: the weights stream through once and are used from registers.
template <class D>
void few_rows(const Wna16 &a, const D &decoder, int64_t panel_begin, int64_t panel_end) {
    if (a.m == 1) return stream_rows<1>(a, decoder, panel_begin, panel_end);
    if (a.m == 2) return stream_rows<2>(a, decoder, panel_begin, panel_end);
    constexpr int64_t panels = shared_panels(8);
    alignas(64) float total[panels * kFewRows * kLanes];
    for (int64_t panel = panel_begin; panel < panel_end; panel += panels) {
        // Past the last panel the last one is read again, and its result dropped.
        const int64_t present = least(panels, panel_end - panel), step = present - 1;
        std::memset(total, 0, sizeof total);
        // Up to eight rows take all segments in one call; more take turns at each while it is in L1.
        const int64_t run = a.m <= 8 ? a.segment_count : 1;
        for (int64_t s = 0; s < a.segment_count; s += run) {
            int64_t row = 0;
            for (; a.m - row > 4; row += 8) {
                add_segments<8>(a, decoder, panel, step, s, s + run, row, least(8, a.m - row), total);
            }
            if (row < a.m) add_segments<4>(a, decoder, panel, step, s, s + run, row, a.m - row, total);
        }
        for (int64_t p = 0; p < present; ++p) {
            for (int64_t r = 0; r < a.m; ++r) {
                finish16(a.y, a.x_dtype, r, panel + p, a.n, a.bias, total + (p * kFewRows + r) * kLanes);
            }
        }
    }
}

void few_rows_bf16(const Wna16 &a, int64_t panel_begin, int64_t panel_end) {
    with_decoder(a, [&](const auto &decoder) { few_rows(a, decoder, panel_begin, panel_end); });
}

}  // namespace

const vqp::Wna16Kernels vqp::wna16_avx512_bf16 = {sizeof(Bits), false,         Bf16::kPanels,      kFewRows, kSpareRows,
                                                  prepare_bf16, few_rows_bf16, gemm_scratch<Bf16>, gemm<Bf16>};
