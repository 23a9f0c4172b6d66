/* wgmma.m64nNk16 with A in registers and B in shared memory ("RS"; sm_90a), 16-bit operands.
 *
 * A is the weight: warp w of the warpgroup holds rows 16 w .. 16 w + 15 as A fragments of mma.m16n8k16. B is the
 * activation [token][k], in tiles of 64 columns. The accumulators have the layout of C of mma.m16n8k16, one 8-token
 * tile after another.
 *
 * An issued wgmma owns its registers until it is waited for. The compiler does not know that, so whatever a wgmma may
 * still read or write is an operand of the wait that releases it.
 */
#ifndef VQP_CUDA_WGMMA_RS_H
#define VQP_CUDA_WGMMA_RS_H

#include "wgmma.h"

#ifdef __CUDACC__

namespace vqp {

#define VQP_WGMMA(n, type, registers, a0, a1, a2, a3, b, scale)                                                      \
  "{\n.reg .pred p;\nsetp.ne.b32 p, %" #scale ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type  \
  " {" registers "}, {%" #a0 ",%" #a1 ",%" #a2 ",%" #a3 "}, %" #b ", p, 1, 1, 0;\n}"
#define VQP_INPUTS "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate))

/* c (16 channels of this warp x 8 kTiles tokens) += or = A B. `b` describes 16 columns of the first token's row. */
template <class T, int kTiles>
VQP_DEVICE void wgmma_rs(float (&c)[kTiles][4], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  static_assert(kTiles == 8 || kTiles == 16, "64 or 128 tokens");
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  constexpr bool kHalf = T::kMantissa == Half::kMantissa;
  if constexpr (kTiles == 8 && kHalf)
    asm volatile(VQP_WGMMA(64, "f16", VQP_R32, 32, 33, 34, 35, 36, 37) : VQP_ACC32("+f", c, 0) : VQP_INPUTS);
  else if constexpr (kTiles == 8)
    asm volatile(VQP_WGMMA(64, "bf16", VQP_R32, 32, 33, 34, 35, 36, 37) : VQP_ACC32("+f", c, 0) : VQP_INPUTS);
  else if constexpr (kHalf)
    asm volatile(VQP_WGMMA(128, "f16", VQP_R64, 64, 65, 66, 67, 68, 69)
                 : VQP_ACC32("+f", c, 0), VQP_ACC32("+f", c, 8)
                 : VQP_INPUTS);
  else
    asm volatile(VQP_WGMMA(128, "bf16", VQP_R64, 64, 65, 66, 67, 68, 69)
                 : VQP_ACC32("+f", c, 0), VQP_ACC32("+f", c, 8)
                 : VQP_INPUTS);
#endif
}

/* A wgmma owns its accumulators until it is waited for, which the compiler does not know. This keeps the thread's own
 * accesses to them before or after it; ptxas serializes wgmmas whose accumulators are first defined between two of
 * them. `static`: wgmma_ss.h has another form, and no source includes both. */
template <int kTiles>
static VQP_DEVICE void fence_accumulators(float (&c)[kTiles][4]) {
  if constexpr (kTiles == 8)
    asm volatile("" : VQP_ACC32("+f", c, 0)::"memory");
  else
    asm volatile("" : VQP_ACC32("+f", c, 0), VQP_ACC32("+f", c, 8)::"memory");
}

/* Wait until at most kPending committed groups are in flight; then `c`, or `a`, belongs to this thread again. */
template <int kPending, int kTiles>
VQP_DEVICE void wgmma_wait(float (&c)[kTiles][4]) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  if constexpr (kTiles == 8)
    asm volatile("wgmma.wait_group.sync.aligned %32;" : VQP_ACC32("+f", c, 0) : "n"(kPending) : "memory");
  else
    asm volatile("wgmma.wait_group.sync.aligned %64;"
                 : VQP_ACC32("+f", c, 0), VQP_ACC32("+f", c, 8)
                 : "n"(kPending)
                 : "memory");
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
