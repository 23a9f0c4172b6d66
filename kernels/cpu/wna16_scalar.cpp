#define VQP_WIDTH 4
#include "wna16_f32.h"

const vqp::Wna16Kernels vqp::wna16_scalar = VQP_WNA16_F32_KERNELS;
