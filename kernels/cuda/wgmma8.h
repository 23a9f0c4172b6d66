/* wgmma of 8-bit codes (sm_90a): both operands in shared memory, in rows of 128 bytes with the 128-byte swizzle.
 *
 * A is 64 rows and B `8 kTiles` rows of 32 bytes of K each; warp w of the warpgroup gets the sums of rows 16 w .. of A,
 * in the layout of mma.m16n8k32's C, one after another along the rows of B. Descriptors are those of wgmma.h: 32 bytes
 * further along K are 2 more.
 */
#ifndef VQP_CUDA_WGMMA8_H
#define VQP_CUDA_WGMMA8_H

#include "wgmma.h"

#ifndef __CUDACC__
#include "emulator_wgmma8.h"
#else

namespace vqp {

#define VQP_C4(how, c, t) how(c[t][0]), how(c[t][1]), how(c[t][2]), how(c[t][3])
#define VQP_C32(how, c, t)                                                                                          \
  VQP_C4(how, c, t), VQP_C4(how, c, t + 1), VQP_C4(how, c, t + 2), VQP_C4(how, c, t + 3), VQP_C4(how, c, t + 4),    \
      VQP_C4(how, c, t + 5), VQP_C4(how, c, t + 6), VQP_C4(how, c, t + 7)
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
VQP_DEVICE void wgmma8(float (&c)[kTiles][4], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(kTiles == 16 || kTiles == 32, "128 or 256 rows of B");
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  if constexpr (kTiles == 16)
    asm volatile(VQP_WGMMA8("m64n128k32.f32.e4m3.e4m3", VQP_R64, 64, 65, 66, ", 1, 1")
                 : VQP_C32("+f", c, 0), VQP_C32("+f", c, 8)
                 : VQP_INPUTS8);
  else
    asm volatile(VQP_WGMMA8("m64n256k32.f32.e4m3.e4m3", VQP_R128, 128, 129, 130, ", 1, 1")
                 : VQP_C32("+f", c, 0), VQP_C32("+f", c, 8), VQP_C32("+f", c, 16), VQP_C32("+f", c, 24)
                 : VQP_INPUTS8);
#endif
}
template <int kTiles>
VQP_DEVICE void wgmma8(int32_t (&c)[kTiles][4], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(kTiles == 16 || kTiles == 32, "128 or 256 rows of B");
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  if constexpr (kTiles == 16)
    asm volatile(VQP_WGMMA8("m64n128k32.s32.s8.s8", VQP_R64, 64, 65, 66, "")
                 : VQP_C32("+r", c, 0), VQP_C32("+r", c, 8)
                 : VQP_INPUTS8);
  else
    asm volatile(VQP_WGMMA8("m64n256k32.s32.s8.s8", VQP_R128, 128, 129, 130, "")
                 : VQP_C32("+r", c, 0), VQP_C32("+r", c, 8), VQP_C32("+r", c, 16), VQP_C32("+r", c, 24)
                 : VQP_INPUTS8);
#endif
}

/* The sums of products that have ended (or not begun) are the thread's: none of its accesses moves past this. */
template <int kTiles>
VQP_DEVICE void wgmma8_hold(float (&c)[kTiles][4]) {
  VQP_UNROLL
  for (int t = 0; t < kTiles; ++t) asm volatile("" : VQP_C4("+f", c, t)::"memory");
}
template <int kTiles>
VQP_DEVICE void wgmma8_hold(int32_t (&c)[kTiles][4]) {
  VQP_UNROLL
  for (int t = 0; t < kTiles; ++t) asm volatile("" : VQP_C4("+r", c, t)::"memory");
}

/* Wait until at most kPending committed groups are under way; sums of the others must be held before they are read. */
template <int kPending>
VQP_DEVICE void wgmma8_wait() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#endif
}

}  // namespace vqp
#endif
#endif
