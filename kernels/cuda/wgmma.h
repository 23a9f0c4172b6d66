/* wgmma (sm_90a): the asynchronous MMA of a warpgroup. Shared by wgmma_rs.h (A in registers) and wgmma_ss.h (A in
 * shared memory): matrix descriptors, fences, commit and wait.
 *
 * Operands in shared memory are K-major: rows of 128 bytes, 8 rows per atom of 1024 bytes whose 16-byte chunks are
 * XOR-swizzled by the row ("128-byte swizzle"), and the atoms consecutive along the rows.
 */
#ifndef VQP_CUDA_WGMMA_H
#define VQP_CUDA_WGMMA_H

#include "ptx.h"

namespace vqp {

constexpr int kSwizzleRow = 128;  /* bytes */
constexpr int kSwizzleAtom = 1024;

/* Byte offset of 16-byte chunk `chunk` (8 columns) of a row in a tile of 64 columns. */
VQP_HD constexpr int swizzled(int row, int chunk) { return row * kSwizzleRow + ((chunk ^ (row & 7)) << 4); }

/* PTX ISA, "Matrix Descriptor Format": address, leading offset (unused with this swizzle), offset between atoms along
 * the rows, 128-byte swizzle. `address` is a shared memory address; the tile is 1024-byte aligned. */
VQP_HD constexpr uint64_t tile_descriptor(uint32_t address) {
  return static_cast<uint64_t>((address & 0x3FFFF) >> 4) | static_cast<uint64_t>(1) << 16 |
         static_cast<uint64_t>(kSwizzleAtom >> 4) << 32 | static_cast<uint64_t>(1) << 62;
}

}  // namespace vqp

#ifndef __CUDACC__
#include "emulator_wgmma.h"
#else

namespace vqp {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kWarpgroups = true;
#else
constexpr bool kWarpgroups = false;
#endif

/* Orders this thread's accesses to the registers of wgmmas before the next wgmma. */
VQP_DEVICE void wgmma_fence() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
VQP_DEVICE void wgmma_commit() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
/* Makes this thread's writes to shared memory, completed cp.async included, visible to later reads by wgmma. */
VQP_DEVICE void fence_proxy_async() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

/* Wait until at most kPending committed groups are in flight. The accumulators of the finished ones must pass
 * fence_accumulators before they are read. */
template <int kPending>
VQP_DEVICE void wgmma_wait() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#endif
}

/* The registers of four accumulators, and of 32, as operands of inline PTX. */
#define VQP_ACC4(how, c, t) how(c[t][0]), how(c[t][1]), how(c[t][2]), how(c[t][3])
#define VQP_ACC32(how, c, t)                                                                                         \
  VQP_ACC4(how, c, t), VQP_ACC4(how, c, t + 1), VQP_ACC4(how, c, t + 2), VQP_ACC4(how, c, t + 3),                    \
      VQP_ACC4(how, c, t + 4), VQP_ACC4(how, c, t + 5), VQP_ACC4(how, c, t + 6), VQP_ACC4(how, c, t + 7)
#define VQP_R32                                                                                                      \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,"  \
  "%30,%31"
#define VQP_R64                                                                                                      \
  VQP_R32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,"    \
          "%57,%58,%59,%60,%61,%62,%63"

}  // namespace vqp
#endif
#endif
