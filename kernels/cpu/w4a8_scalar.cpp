#define VQP_WIDTH 4
#include "w4a8.h"

namespace {

VQP_INLINE vi dot4(vi sum, vu w, vi x) {
    for (int j = 0; j < 4; ++j) sum += (vi)(w >> (8 * j) & 255) * ((x << (24 - 8 * j)) >> 24);
    return sum;
}

}  // namespace

const vqp::Wna16Kernels vqp::w4a8_scalar = VQP_W4A8_KERNELS;
