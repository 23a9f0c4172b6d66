/* The C interface of the weight-only GEMM: plan, launch, pack. See include/vqp_cuda.h. */
#include "wna16_kernels.h"
#include "pack_kernel.h"
#include "runtime.h"
#include "wna16_kernel.h"

namespace vqp {
namespace {

template <class T>
VQP_KERNEL(kThreads, 4)
wna16_reduce(const VQP_PARAMETER Wna16Params p, int64_t rows, int tokens) {
  wna16_reduce_cta<T>(p, rows, tokens);
}

VQP_KERNEL(kThreads, 4) pack(const VQP_PARAMETER PackParams p) { pack_cta(p); }

const void *kernel_of(const vqp_cuda_linear &c, int tokens) {
  const bool half = c.x_dtype == VQP_CUDA_F16, zeros = float_zeros(c);
  switch (c.kind) {
    case 2: return wna16_kernel<2>(half, tokens, zeros);
    case 3: return wna16_kernel<3>(half, tokens, zeros);
    case 4: return wna16_kernel<4>(half, tokens, zeros);
    case 5: return wna16_kernel<5>(half, tokens, zeros);
    case 6: return wna16_kernel<6>(half, tokens, zeros);
    case 7: return wna16_kernel<7>(half, tokens, zeros);
    case 8: return wna16_kernel<8>(half, tokens, zeros);
    default: return wna16_kernel<kFp8>(half, tokens, zeros);
  }
}

/* Read once per device. Concurrent first calls write the same values. */
int device_of(int *index, Device *out) {
  static Device known[kMaxDevices];
  static volatile bool ready[kMaxDevices];
  const cudaError_t error = cudaGetDevice(index);
  if (error != cudaSuccess) return runtime_error(error);
  if (*index >= kMaxDevices) return VQP_CUDA_EDEVICE;
  if (!ready[*index]) {
    Device d = {};
    int capability;
    const int failed = read_device(*index, wna16_kernel<4>(true, 8, false), &d, &capability);
    if (failed) return failed;
    cudaFuncAttributes wide;
    const cudaError_t wrong = cudaFuncGetAttributes(&wide, wna16_kernel<4>(true, kWideTokens, false));
    if (wrong != cudaSuccess) return runtime_error(wrong);
    d.warpgroups = wide.maxThreadsPerBlock >= kThreads;
    known[*index] = d;
    __sync_synchronize();
    ready[*index] = true;
  }
  *out = known[*index];
  return VQP_CUDA_OK;
}

}  // namespace
}  // namespace vqp

using namespace vqp;

int vqp_cuda_abi_version(void) { return VQP_CUDA_ABI_VERSION; }

int vqp_cuda_linear_plan(const vqp_cuda_linear *call, int tokens, vqp_cuda_plan *plan) {
  int index;
  Device device;
  const int error = device_of(&index, &device);
  return error ? error : make_wna16_plan(*call, device, tokens, plan);
}

int vqp_cuda_linear_run(const vqp_cuda_linear *call, const vqp_cuda_plan *plan, void *workspace,
                        int64_t workspace_bytes, void *stream_) {
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_);
  int index;
  Device device;
  const int unknown = device_of(&index, &device);
  if (unknown) return unknown;
  if (workspace_bytes < plan->workspace_bytes) return VQP_CUDA_EWORKSPACE;
  if (plan->m_tiles == 0) return VQP_CUDA_OK;
  const void *kernel = kernel_of(*call, plan->tokens);
  /* Always the maximum, not what this call needs: a concurrent call could lower the limit before this launch. Cheap,
   * and allowed during graph capture. */
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, device.smem_per_cta);
  if (error != cudaSuccess) return runtime_error(error);
  Wna16Params p = wna16_params(*call, *plan, static_cast<float *>(workspace));
  void *arguments[] = {&p};
  int failed = launch(kernel, dim3(plan->splits, plan->m_tiles, plan->n_tiles), plan->shared_bytes,
                      plan->clustered ? plan->splits : 1, arguments, stream, plan->dependent);
  if (failed || !p.partial) return failed;
  int64_t rows = static_cast<int64_t>(plan->m_tiles) * plan->tokens;
  int tokens = plan->tokens;
  void *reduce_arguments[] = {&p, &rows, &tokens};
  const void *second = call->x_dtype == VQP_CUDA_F16 ? reinterpret_cast<const void *>(&wna16_reduce<Half>)
                                                     : reinterpret_cast<const void *>(&wna16_reduce<BFloat16>);
  const int64_t grid_rows = call->rows ? call->sorted_rows : call->m;
  return launch(second, dim3(ceil_div(call->n, kThreads), grid_rows < 65535 ? grid_rows : 65535), 0, 1,
                reduce_arguments, stream);
}

int vqp_cuda_pack(const uint8_t *codes, int64_t n, int64_t k, int64_t k_padded, const int32_t *perm, int kind,
                  uint8_t *data, void *stream) {
  if (n < 1 || k < 1 || k_padded < k || k_padded % kSlab) return VQP_CUDA_ESHAPE;
  if (kind < 2 || kind > kFp8) return VQP_CUDA_EDTYPE;
  PackParams p = {codes, perm, reinterpret_cast<uint32_t *>(data), n, k, k_padded, bits_of(kind)};
  void *arguments[] = {&p};
  return launch(reinterpret_cast<const void *>(&pack), dim3(ceil_div(pack_words(p), kThreads)), 0, 1, arguments,
                static_cast<cudaStream_t>(stream));
}
