/* wgmma (sm_90a): a warpgroup's matrix product, asynchronous, with A in registers and B in shared memory.
 *
 * A is the weight: warp w of the warpgroup holds rows 16 w .. 16 w + 15 in the very fragments of mma.m16n8k16.
 * B is the activation [token][k] (K-major): rows of 128 bytes (64 columns), 8 rows to an atom of 1024 bytes whose
 * 16-byte chunks are XOR-swizzled by the row ("128-byte swizzle"), atoms one behind the other along the tokens.
 * The sums have the layout of mma.m16n8k16's C, one after another along the tokens.
 *
 * An issued product owns its registers until it is waited for. The compiler does not know that, so whatever a product
 * may still read or write is an operand of the wait that frees it.
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
 * the tokens, 128-byte swizzle. `address` is in shared memory; the tile begins at a multiple of 1024. */
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

/* Orders this thread's accesses to the registers of products before the next product. */
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
/* This thread's writes to shared memory, its finished cp.async among them, before later reads by wgmma. */
VQP_DEVICE void proxy_fence() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

#define VQP_F4(c, t) "+f"(c[t][0]), "+f"(c[t][1]), "+f"(c[t][2]), "+f"(c[t][3])
#define VQP_F32(c, t)                                                                                                \
  VQP_F4(c, t), VQP_F4(c, t + 1), VQP_F4(c, t + 2), VQP_F4(c, t + 3), VQP_F4(c, t + 4), VQP_F4(c, t + 5),            \
      VQP_F4(c, t + 6), VQP_F4(c, t + 7)
#define VQP_R32                                                                                                      \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,"  \
  "%30,%31"
#define VQP_R64                                                                                                      \
  VQP_R32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,"    \
          "%57,%58,%59,%60,%61,%62,%63"
#define VQP_WGMMA(n, type, registers, a0, a1, a2, a3, b, scale)                                                      \
  "{\n.reg .pred p;\nsetp.ne.b32 p, %" #scale ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type  \
  " {" registers "}, {%" #a0 ",%" #a1 ",%" #a2 ",%" #a3 "}, %" #b ", p, 1, 1, 0;\n}"
#define VQP_INPUTS "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate))

/* c (16 channels of this warp x 8 kTiles tokens) += or = A B. `b` describes 16 columns of the first token's row. */
template <class T, int kTiles>
VQP_DEVICE void wgmma(float (&c)[kTiles][4], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  static_assert(kTiles == 8 || kTiles == 16, "64 or 128 tokens");
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  constexpr bool kHalf = T::kMantissa == Half::kMantissa;
  if constexpr (kTiles == 8 && kHalf)
    asm volatile(VQP_WGMMA(64, "f16", VQP_R32, 32, 33, 34, 35, 36, 37) : VQP_F32(c, 0) : VQP_INPUTS);
  else if constexpr (kTiles == 8)
    asm volatile(VQP_WGMMA(64, "bf16", VQP_R32, 32, 33, 34, 35, 36, 37) : VQP_F32(c, 0) : VQP_INPUTS);
  else if constexpr (kHalf)
    asm volatile(VQP_WGMMA(128, "f16", VQP_R64, 64, 65, 66, 67, 68, 69) : VQP_F32(c, 0), VQP_F32(c, 8) : VQP_INPUTS);
  else
    asm volatile(VQP_WGMMA(128, "bf16", VQP_R64, 64, 65, 66, 67, 68, 69) : VQP_F32(c, 0), VQP_F32(c, 8) : VQP_INPUTS);
#endif
}

/* Defines the registers here: ptxas serializes the products if their first values come between two of them. */
template <int kTiles>
VQP_DEVICE void wgmma_hold(float (&c)[kTiles][4]) {
  if constexpr (kTiles == 8)
    asm volatile("" : VQP_F32(c, 0)::"memory");
  else
    asm volatile("" : VQP_F32(c, 0), VQP_F32(c, 8)::"memory");
}

/* Wait until at most kPending committed groups are under way; then `c`, or `a`, is this thread's again. */
template <int kPending, int kTiles>
VQP_DEVICE void wgmma_wait(float (&c)[kTiles][4]) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  if constexpr (kTiles == 8)
    asm volatile("wgmma.wait_group.sync.aligned %32;" : VQP_F32(c, 0) : "n"(kPending) : "memory");
  else
    asm volatile("wgmma.wait_group.sync.aligned %64;" : VQP_F32(c, 0), VQP_F32(c, 8) : "n"(kPending) : "memory");
#endif
}
template <int kPending>
VQP_DEVICE void wgmma_wait(uint32_t (&a)[4]) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.wait_group.sync.aligned %4;"
               : "+r"(a[0]), "+r"(a[1]), "+r"(a[2]), "+r"(a[3])
               : "n"(kPending)
               : "memory");
#endif
}

}  // namespace vqp
#endif
#endif
