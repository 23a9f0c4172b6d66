/* The instructions of kernels/cuda/async.h on the CPU. A copy completes when it is issued, or when no thread can
 * continue without it (see Options). Visibility follows from arrivals and waits alone: a stage that is read before its
 * full barrier, or refilled before all have released it, is reported whatever the order of execution.
 */
#ifndef VQP_EMULATOR_ASYNC_H
#define VQP_EMULATOR_ASYNC_H

#include "emulator.h"

namespace vqp {

/* The parameters of cuTensorMapEncodeTiled: bytes, rows `stride` apart; boxes of `box` rows x 128 columns. */
struct TensorMap {
  const char *base = nullptr;
  int64_t rows = 0, columns = 0, stride = 0;
  int box = 0;
};
struct alignas(8) Mbarrier {
  uint64_t word;
};

int cluster_rank();
void mbarrier_init(Mbarrier *barrier, int arrivals);
void fence_mbarrier_init();
void mbarrier_arrive_expect_tx(Mbarrier *barrier, int bytes);
void mbarrier_arrive_cluster(Mbarrier *barrier, int rank);
void mbarrier_wait(Mbarrier *barrier, int parity);
inline void mbarrier_wait_cluster(Mbarrier *barrier, int parity) { mbarrier_wait(barrier, parity); }
inline void prefetch_tensor_map(const TensorMap &) {}
void tma_load_multicast(char *to, const TensorMap &map, int column, int row, Mbarrier *barrier, int ctas);
inline void tma_load(char *to, const TensorMap &map, int column, int row, Mbarrier *barrier) {
  tma_load_multicast(to, map, column, row, barrier, 1 << cluster_rank());
}
namespace emulator {
/* bulk_load into CTA `rank` of the cluster. */
void copy_to_cta(int rank, char *to, const void *from, int bytes, Mbarrier *barrier);
}  // namespace emulator
inline void bulk_load(char *to, const void *from, int bytes, Mbarrier *barrier) {
  emulator::copy_to_cta(cluster_rank(), to, from, bytes, barrier);
}
template <int kRegisters>
void reg_dealloc() {}
template <int kRegisters>
void reg_alloc() {}

}  // namespace vqp

#endif
