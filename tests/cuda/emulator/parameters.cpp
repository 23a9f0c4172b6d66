/* The parameters of kernels as the host passes them, for the interpreter of tests/cuda/ptx. */
#include <string.h>

#include "emulator.h"
#include "pack_kernel.h"
#include "quantize_kernel.h"
#include "w8a8_wide_schedule.h"
#include "wna16_params.h"

using namespace vqp;

namespace {
template <class P>
int copy_out(const P &p, void *out) {
  memcpy(out, &p, sizeof(P));
  return sizeof(P);
}
}  // namespace

extern "C" {

int vqp_parameters_wna16(const vqp_cuda_linear *call, const vqp_cuda_plan *plan, void *workspace, void *out) {
  return copy_out(wna16_params(*call, *plan, static_cast<float *>(workspace)), out);
}

int vqp_parameters_w8a8(const vqp_cuda_w8a8 *call, const vqp_cuda_w8a8_plan *plan, void *workspace, void *out) {
  return copy_out(w8a8_params(*call, *plan, workspace), out);
}

/* All but the two tensor maps, whose matrices are given as (base, rows, columns, stride, box) each. */
int vqp_parameters_w8a8_wide(const vqp_cuda_w8a8 *call, const vqp_cuda_w8a8_plan *plan, void *out, int64_t *matrices) {
  const W8a8WideParams p = w8a8_wide_params(*call, *plan);
  const W8a8WideMatrix both[] = {w8a8_wide_x(*call), w8a8_wide_w(*call, *plan)};
  for (const W8a8WideMatrix &m : both) {
    const int64_t values[] = {reinterpret_cast<int64_t>(m.base), m.rows, m.columns, m.stride, m.box};
    memcpy(matrices, values, sizeof(values));
    matrices += 5;
  }
  const size_t begin = reinterpret_cast<const char *>(&p.call) - reinterpret_cast<const char *>(&p);
  memcpy(out, &p.call, sizeof(p) - begin);
  return static_cast<int>(sizeof(p) - begin);
}

/* `launch`: CTAs, shared memory, and whether rows are kept in registers. */
int vqp_parameters_quantize(const vqp_cuda_quantize *call, int shared_limit, void *out, int64_t *launch) {
  const QuantizeParams p = quantize_params(*call, shared_limit);
  launch[0] = quantize_ctas(p), launch[1] = quantize_smem_bytes(p), launch[2] = in_registers(p);
  return copy_out(p, out);
}

int vqp_parameters_pack(const uint8_t *codes, int64_t n, int64_t k, int64_t k_padded, const int32_t *perm, int kind,
                        uint8_t *data, void *out, int64_t *ctas) {
  const PackParams p = {codes, perm, reinterpret_cast<uint32_t *>(data), n, k, k_padded, bits_of(kind)};
  *ctas = ceil_div(pack_words(p), kThreads);
  return copy_out(p, out);
}

}  // extern "C"
