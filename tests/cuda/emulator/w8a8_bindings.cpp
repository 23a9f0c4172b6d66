/* The calls of the 8-bit kernels with CPU pointers, and their single maps for tests. */
#include "emulator.h"
#include "quantize_kernel.h"

namespace vqp {
namespace {

template <class T>
void run_quantize(const QuantizeParams &p) {
  if (p.call.group_size) return quantize_groups_block<T>(p);
  if (p.call.kind == kInt8)
    in_registers(p) ? quantize_rows_block<T, kInt8, true>(p) : quantize_rows_block<T, kInt8, false>(p);
  else
    in_registers(p) ? quantize_rows_block<T, kFp8, true>(p) : quantize_rows_block<T, kFp8, false>(p);
}

}  // namespace
}  // namespace vqp

using namespace vqp;

extern "C" {

int vqp_emulator_quantize(const vqp_cuda_quantize *call, int shared_limit) {
  const int error = check_quantize(*call);
  if (error || !call->m) return error;
  const QuantizeParams p = quantize_params(*call, shared_limit);
  emulator::launch({static_cast<int>(quantize_blocks(p)), 1, 1}, kThreads, quantize_shared(p), 1,
                   [&] { call->x_dtype == VQP_CUDA_F16 ? run_quantize<Half>(p) : run_quantize<BFloat16>(p); });
  return VQP_CUDA_OK;
}

uint32_t vqp_emulator_e4m3(float value) { return soft_e4m3(value); }
float vqp_emulator_e4m3_value(uint32_t code) { return e4m3_value(code); }
}
