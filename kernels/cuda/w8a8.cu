/* The C interface of the W8A8 GEMM: plan and launch. See include/vqp_cuda_w8a8.h. */
#include "runtime.h"
#include "w8a8_epilogue.h"
#include "w8a8_kernels.h"
#include "w8a8_wide.h"
#include "w8a8_wide_schedule.h"

namespace vqp {
namespace {

template <int kKind>
VQP_KERNEL(kThreads, 4)
w8a8_reduce(const VQP_PARAMETER W8a8Params p, int64_t rows) {
  w8a8_reduce_cta<kKind>(p, rows);
}

int second_pass(W8a8Params p, int64_t rows, cudaStream_t stream) {
  const vqp_cuda_w8a8 &c = p.call;
  void *arguments[] = {&p, &rows};
  const void *kernel = c.kind == kInt8 ? reinterpret_cast<const void *>(&w8a8_reduce<kInt8>)
                                       : reinterpret_cast<const void *>(&w8a8_reduce<kFp8>);
  return launch(kernel, dim3(ceil_div(c.n, 2 * kThreads), c.m < 65535 ? c.m : 65535), 0, 1, arguments, stream);
}

/* Read once per device. Concurrent first calls write the same values. */
int limits(Device *device, bool *fp8) {
  static Device known[kMaxDevices];
  static int capability[kMaxDevices];
  static volatile bool ready[kMaxDevices];
  int index;
  const cudaError_t error = cudaGetDevice(&index);
  if (error != cudaSuccess) return runtime_error(error);
  if (index >= kMaxDevices) return VQP_CUDA_EDEVICE;
  if (!ready[index]) {
    const int failed = read_device(index, w8a8_kernel<kFp8>(8, false, false), &known[index], &capability[index]);
    if (failed) return failed;
    bool wide = false;
    const int wrong = w8a8_wide_available(&wide);
    if (wrong) return wrong;
    known[index].warpgroups = wide;
    __sync_synchronize();
    ready[index] = true;
  }
  *device = known[index];
  *fp8 = capability[index] >= 89;
  return VQP_CUDA_OK;
}

}  // namespace
}  // namespace vqp

using namespace vqp;

int vqp_cuda_w8a8_make_plan(const vqp_cuda_w8a8 *call, vqp_cuda_w8a8_plan *plan) {
  Device device = {};
  bool fp8 = false;
  const int error = limits(&device, &fp8);
  if (error) return error;
  return call->warpgroups ? make_w8a8_wide_plan(*call, device, plan) : make_w8a8_plan(*call, device, fp8, plan);
}

int vqp_cuda_w8a8_run(const vqp_cuda_w8a8 *call, const vqp_cuda_w8a8_plan *plan, void *workspace,
                      int64_t workspace_bytes, void *stream_) {
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_);
  Device device = {};
  bool fp8 = false;
  const int unknown = limits(&device, &fp8);
  if (unknown) return unknown;
  if (workspace_bytes < plan->workspace_bytes) return VQP_CUDA_EWORKSPACE;
  if (plan->m_tiles == 0) return VQP_CUDA_OK;
  if (plan->channels) return run_w8a8_wide(*call, *plan, stream_);
  const bool int8 = call->kind == kInt8, grouped = call->grouped || call->promote, fused = call->quantize_x;
  const void *kernel = int8 ? w8a8_kernel<kInt8>(plan->tokens, grouped, fused)
                            : w8a8_kernel<kFp8>(plan->tokens, grouped, fused);
  /* Always the maximum, not what this call needs: a concurrent call could lower the limit before this launch. */
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, device.smem_per_cta);
  if (error != cudaSuccess) return runtime_error(error);
  W8a8Params p = w8a8_params(*call, *plan, workspace);
  void *arguments[] = {&p};
  const int failed = launch(kernel, dim3(plan->splits, plan->m_tiles, plan->n_tiles), plan->shared_bytes,
                            plan->clustered ? plan->splits : 1, arguments, stream, plan->dependent);
  if (failed || !p.partial) return failed;
  return second_pass(p, static_cast<int64_t>(plan->m_tiles) * plan->tokens, stream);
}

int vqp_cuda_w8a8_finish(const vqp_cuda_w8a8 *call, const void *sums, void *stream) {
  const int error = check_w8a8(*call);
  if (error || call->m == 0) return error;
  if (call->grouped || call->quantize_x) return VQP_CUDA_ESHAPE;
  return second_pass(finish_params(*call, sums), call->m, static_cast<cudaStream_t>(stream));
}
