// A plain loop that reads memory: the bandwidth that the benchmarks measure kernels against.

#include <cstring>

#include "common.h"
#include "parallel.h"

namespace {

typedef uint64_t Vector __attribute__((vector_size(32)));

#if defined(__x86_64__)
__attribute__((target("avx2")))
#endif
uint64_t read_part(const char *p, int64_t bytes) {
    Vector sum[8] = {};
    for (int64_t i = 0; i + 256 <= bytes; i += 256) {
        for (int j = 0; j < 8; ++j) {
            Vector v;
            std::memcpy(&v, p + i + 32 * j, sizeof v);
            sum[j] += v;
        }
    }
    uint64_t total = 0;
    for (int j = 0; j < 8; ++j) total += sum[j][0] + sum[j][1] + sum[j][2] + sum[j][3];
    return total;
}

}  // namespace

extern "C" uint64_t vqp_read(const void *memory, int64_t bytes, int threads) {
    const int64_t part = bytes / (threads > 0 ? threads : 1);
    uint64_t sums[256] = {};
    vqp::parallel_for(threads, threads < 256 ? threads : 256, [&](int64_t t, int) {
        sums[t] = read_part(static_cast<const char *>(memory) + t * part, part);
    });
    uint64_t total = 0;
    for (uint64_t sum : sums) total += sum;
    return total;
}
