#define VQP_WIDTH 16
#include "w4a8.h"

namespace {

VQP_INLINE vi dot4(vi sum, vu w, vi x) { return (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x); }

}  // namespace

const vqp::Wna16Kernels vqp::w4a8_avx512_vnni = VQP_W4A8_KERNELS;
