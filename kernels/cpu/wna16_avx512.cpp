#define VQP_WIDTH 16
#include "wna16_f32.h"

const vqp::Wna16Kernels vqp::wna16_avx512 = VQP_WNA16_F32_KERNELS;
