/* The fragment layouts of mma.sync.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16") as index maps.
 *
 * The weight is A (16 output channels x 16 input features) and the activation is B (16 input features x 8 tokens), so C
 * is 16 channels x 8 tokens. A batch of 1 to 8 tokens then leaves columns of B unused instead of rows of A.
 * Every register of A and B holds two neighbouring k, the lower one in the low half.
 */
#ifndef VQP_CUDA_FRAGMENTS_H
#define VQP_CUDA_FRAGMENTS_H

#include "host_device.h"

namespace vqp {

VQP_HD constexpr int a_row(int lane, int reg) { return (lane >> 2) + 8 * (reg & 1); }
VQP_HD constexpr int a_col(int lane, int reg, int half) { return 2 * (lane & 3) + half + 8 * (reg >> 1); }

VQP_HD constexpr int b_row(int lane, int reg, int half) { return 2 * (lane & 3) + half + 8 * reg; }
VQP_HD constexpr int b_col(int lane) { return lane >> 2; }

/* mma.m16n8k32 of 8-bit elements: the same bytes in the same registers, with four neighbouring k in each. */
VQP_HD constexpr int a8_col(int lane, int reg, int byte) { return 4 * (lane & 3) + byte + 16 * (reg >> 1); }
VQP_HD constexpr int b8_row(int lane, int reg, int byte) { return 4 * (lane & 3) + byte + 16 * reg; }

VQP_HD constexpr int c_row(int lane, int reg) { return (lane >> 2) + 8 * (reg >> 1); }
VQP_HD constexpr int c_col(int lane, int reg) { return 2 * (lane & 3) + (reg & 1); }

}  // namespace vqp

#endif
