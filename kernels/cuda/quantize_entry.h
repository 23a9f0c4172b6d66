/* The entry points of the activation quantization on the device. */
#ifndef VQP_CUDA_QUANTIZE_ENTRY_H
#define VQP_CUDA_QUANTIZE_ENTRY_H

#include "quantize_kernel.h"

namespace vqp {
namespace {

template <class T, int kKind, bool kRegisters>
VQP_KERNEL(kThreads, 4)
quantize_rows(const VQP_PARAMETER QuantizeParams p) {
  quantize_rows_cta<T, kKind, kRegisters>(p);
}

template <class T>
VQP_KERNEL(kThreads, 6)
quantize_groups(const VQP_PARAMETER QuantizeParams p) {
  quantize_groups_cta<T>(p);
}

}  // namespace
}  // namespace vqp

#endif
