/* wgmma.m64nNk32 with both operands in shared memory ("SS"; sm_90a), 8-bit operands.
 *
 * A is 64 rows and B 8 kTiles rows, of 32 bytes of K each. Warp w of the warpgroup gets the accumulators of rows 16 w
 * .. 16 w + 15 of A in the layout of C of mma.m16n8k32, one tile of 8 rows of B after another. Advancing a descriptor
 * by 32 bytes along K adds 2 to it.
 */
#ifndef VQP_CUDA_WGMMA_SS_H
#define VQP_CUDA_WGMMA_SS_H

#include "wgmma.h"

#ifndef __CUDACC__
#include "emulator_wgmma_ss.h"
#else

namespace vqp {

#define VQP_R128                                                                                                    \
  VQP_R64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,"   \
          "%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,"     \
          "%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define VQP_WGMMA8(shape, registers, a, b, scale, negate)                                                           \
  "{\n.reg .pred p;\nsetp.ne.b32 p, %" #scale ", 0;\nwgmma.mma_async.sync.aligned." shape " {" registers "}, %" #a  \
  ", %" #b ", p" negate ";\n}"
#define VQP_INPUTS8 "l"(a), "l"(b), "r"(static_cast<int>(accumulate))

/* c += or = A B over 32 bytes of K. */
template <int kTiles>
VQP_DEVICE void wgmma_ss(float (&c)[kTiles][4], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(kTiles == 16 || kTiles == 32, "128 or 256 rows of B");
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  if constexpr (kTiles == 16)
    asm volatile(VQP_WGMMA8("m64n128k32.f32.e4m3.e4m3", VQP_R64, 64, 65, 66, ", 1, 1")
                 : VQP_ACC32("+f", c, 0), VQP_ACC32("+f", c, 8)
                 : VQP_INPUTS8);
  else
    asm volatile(VQP_WGMMA8("m64n256k32.f32.e4m3.e4m3", VQP_R128, 128, 129, 130, ", 1, 1")
                 : VQP_ACC32("+f", c, 0), VQP_ACC32("+f", c, 8), VQP_ACC32("+f", c, 16), VQP_ACC32("+f", c, 24)
                 : VQP_INPUTS8);
#endif
}
template <int kTiles>
VQP_DEVICE void wgmma_ss(int32_t (&c)[kTiles][4], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(kTiles == 16 || kTiles == 32, "128 or 256 rows of B");
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  if constexpr (kTiles == 16)
    asm volatile(VQP_WGMMA8("m64n128k32.s32.s8.s8", VQP_R64, 64, 65, 66, "")
                 : VQP_ACC32("+r", c, 0), VQP_ACC32("+r", c, 8)
                 : VQP_INPUTS8);
  else
    asm volatile(VQP_WGMMA8("m64n256k32.s32.s8.s8", VQP_R128, 128, 129, 130, "")
                 : VQP_ACC32("+r", c, 0), VQP_ACC32("+r", c, 8), VQP_ACC32("+r", c, 16), VQP_ACC32("+r", c, 24)
                 : VQP_INPUTS8);
#endif
}

/* Keeps the thread's own accesses to accumulators before the first wgmma or after the wait for the last. */
template <int kTiles>
static VQP_DEVICE void fence_accumulators(float (&c)[kTiles][4]) {
  VQP_UNROLL
  for (int t = 0; t < kTiles; ++t) asm volatile("" : VQP_ACC4("+f", c, t)::"memory");
}
template <int kTiles>
static VQP_DEVICE void fence_accumulators(int32_t (&c)[kTiles][4]) {
  VQP_UNROLL
  for (int t = 0; t < kTiles; ++t) asm volatile("" : VQP_ACC4("+r", c, t)::"memory");
}

}  // namespace vqp
#endif
#endif
