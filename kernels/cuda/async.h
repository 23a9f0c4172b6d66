/* What a producer warp and its consumers share on sm_90: barriers in shared memory, copies that complete on them, and
 * registers that one warpgroup gives to another.
 *
 *   Mbarrier    counts arrivals and bytes; a phase ends when both are in, and the next begins. Phases are told apart
 *               by their parity: waiting for the parity of the phase before the first returns at once.
 *   TensorMap   a matrix of bytes in global memory and the box of it that one copy brings. Boxes land in rows of 128
 *               bytes with the 128-byte swizzle of wgmma.h; what lies outside the matrix becomes 0, and counts.
 *
 * Copies run in the asynchronous proxy, as wgmma's reads do: between them a barrier is all that is needed.
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

/* One thread, once for each barrier; then the fence, then a barrier of all threads (of the cluster). */
VQP_DEVICE void mbarrier_init(Mbarrier *barrier, int arrivals) {
  VQP_SM90("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
VQP_DEVICE void mbarrier_init_fence() {
  VQP_SM90("fence.mbarrier_init.release.cluster;" ::: "memory");
  VQP_SM90("fence.proxy.async.shared::cta;" ::: "memory");
}
/* Arrive, and expect `bytes` more of copies in this phase. */
VQP_DEVICE void mbarrier_expect(Mbarrier *barrier, int bytes) {
  VQP_SM90("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
           : "memory");
}
/* Arrive at the same barrier of block `rank` of the cluster. */
VQP_DEVICE void mbarrier_arrive(Mbarrier *barrier, int rank) {
  VQP_SM90("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
           "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];\n}" ::"r"(shared_address(barrier)),
           "r"(rank)
           : "memory");
}
/* Wait for the end of the phase of this parity: of copies into this block, or of arrivals from the whole cluster. */
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

VQP_DEVICE void prefetch_map(const TensorMap &map) {
  VQP_SM90("prefetch.tensormap [%0];" ::"l"(reinterpret_cast<uint64_t>(&map)) : "memory");
}
/* The box at (column, row) to `to`, a multiple of 1024 bytes; `barrier` counts its bytes. */
VQP_DEVICE void load_box(char *to, const TensorMap &map, int column, int row, Mbarrier *barrier) {
  VQP_SM90("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
               shared_address(to)),
           "l"(reinterpret_cast<uint64_t>(&map)), "r"(column), "r"(row), "r"(shared_address(barrier))
           : "memory");
}
/* The same into every block of `blocks`, a bit each, at the same place, counted by each one's own barrier. */
VQP_DEVICE void load_box_shared(char *to, const TensorMap &map, int column, int row, Mbarrier *barrier, int blocks) {
  VQP_SM90("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
           "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(to)),
           "l"(reinterpret_cast<uint64_t>(&map)), "r"(column), "r"(row), "r"(shared_address(barrier)),
           "h"(static_cast<uint16_t>(blocks))
           : "memory");
}
/* `bytes`, a multiple of 16, between addresses that are. */
VQP_DEVICE void load_bytes(char *to, const void *from, int bytes, Mbarrier *barrier) {
  VQP_SM90("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
               shared_address(to)),
           "l"(reinterpret_cast<uint64_t>(from)), "r"(bytes), "r"(shared_address(barrier))
           : "memory");
}

/* All threads of a warpgroup: it will use so many registers a thread. */
template <int kRegisters>
VQP_DEVICE void give_registers() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}
template <int kRegisters>
VQP_DEVICE void take_registers() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}

#undef VQP_SM90

}  // namespace vqp
#endif
#endif
