/* The building blocks of a warp-specialized pipeline on sm_90: mbarriers, TMA loads that complete on them, and the
 * reallocation of registers between warpgroups.
 *
 *   Mbarrier    counts arrivals and transaction bytes. When both are complete the phase ends and the next one begins.
 *               Phases are distinguished by their parity: waiting for the parity of the phase before the first one
 *               returns at once.
 *   TensorMap   describes a matrix of bytes in global memory and the box of it that one TMA load copies. A box arrives
 *               as rows of 128 bytes with the 128-byte swizzle of wgmma.h. Elements outside the matrix are 0
 *               and count as transaction bytes.
 *
 * TMA writes through the async proxy and wgmma reads through it, so an mbarrier alone orders them; no proxy fence is
 * needed.
 */
#ifndef VQP_CUDA_ASYNC_H
#define VQP_CUDA_ASYNC_H

#include "wgmma.h"

#ifndef __CUDACC__
#include "emulator_async.h"
#else
#include <cuda.h>

namespace vqp {

typedef CUtensorMap TensorMap;
struct alignas(8) Mbarrier {
  uint64_t word;
};

#if __CUDA_ARCH__ >= 900
#define VQP_SM90(...) asm volatile(__VA_ARGS__)
#else
#define VQP_SM90(...) (void)0
#endif

VQP_DEVICE int cluster_rank() {
  uint32_t rank = 0;
#if __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return static_cast<int>(rank);
}

/* Called by one thread per barrier, before fence_mbarrier_init and a barrier over all threads of the CTA or cluster. */
VQP_DEVICE void mbarrier_init(Mbarrier *barrier, int arrivals) {
  VQP_SM90("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
VQP_DEVICE void fence_mbarrier_init() {
  VQP_SM90("fence.mbarrier_init.release.cluster;" ::: "memory");
  VQP_SM90("fence.proxy.async.shared::cta;" ::: "memory");
}
/* Arrive, and expect `bytes` more transaction bytes in this phase. */
VQP_DEVICE void mbarrier_arrive_expect_tx(Mbarrier *barrier, int bytes) {
  VQP_SM90("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
           : "memory");
}
/* Arrive at the corresponding barrier of CTA `rank` of the cluster. */
VQP_DEVICE void mbarrier_arrive_cluster(Mbarrier *barrier, int rank) {
  VQP_SM90("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
           "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];\n}" ::"r"(shared_address(barrier)),
           "r"(rank)
           : "memory");
}
/* Wait until the phase of this parity has completed. The first form orders TMA loads into this CTA, the second also
 * arrivals from the other CTAs of the cluster. */
VQP_DEVICE void mbarrier_wait(Mbarrier *barrier, int parity) {
#if __CUDA_ARCH__ >= 900
  uint32_t done;
  do {
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.b32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
  } while (!done);
#endif
}
VQP_DEVICE void mbarrier_wait_cluster(Mbarrier *barrier, int parity) {
#if __CUDA_ARCH__ >= 900
  uint32_t done;
  do {
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
        "selp.b32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (!done);
#endif
}

VQP_DEVICE void prefetch_tensor_map(const TensorMap &map) {
  VQP_SM90("prefetch.tensormap [%0];" ::"l"(reinterpret_cast<uint64_t>(&map)) : "memory");
}
/* Load the box at (column, row) into `to`, which is 1024-byte aligned; it completes on `barrier`. */
VQP_DEVICE void tma_load(char *to, const TensorMap &map, int column, int row, Mbarrier *barrier) {
  VQP_SM90("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
           "[%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address(to)),
           "l"(reinterpret_cast<uint64_t>(&map)), "r"(column), "r"(row), "r"(shared_address(barrier))
           : "memory");
}
/* The same into each CTA of the bit mask `ctas`, at the same offset, completing on the barrier of each. */
VQP_DEVICE void tma_load_multicast(char *to, const TensorMap &map, int column, int row, Mbarrier *barrier, int ctas) {
  VQP_SM90("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
           "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(to)),
           "l"(reinterpret_cast<uint64_t>(&map)), "r"(column), "r"(row), "r"(shared_address(barrier)),
           "h"(static_cast<uint16_t>(ctas))
           : "memory");
}
/* cp.async.bulk of contiguous bytes. The size and both addresses are multiples of 16. */
VQP_DEVICE void bulk_load(char *to, const void *from, int bytes, Mbarrier *barrier) {
  VQP_SM90("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
               shared_address(to)),
           "l"(reinterpret_cast<uint64_t>(from)), "r"(bytes), "r"(shared_address(barrier))
           : "memory");
}

/* setmaxnreg: from here on each thread of this warpgroup has kRegisters registers. All its threads take part. */
template <int kRegisters>
VQP_DEVICE void reg_dealloc() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}
template <int kRegisters>
VQP_DEVICE void reg_alloc() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}

#undef VQP_SM90

}  // namespace vqp
#endif
#endif
