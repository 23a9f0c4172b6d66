/* Activation quantization: its kernels and the C call. See include/vqp_cuda_w8a8.h and docs/internals/cuda-w8a8.md. */
#include "quantize_entry.h"
#include "runtime.h"

namespace vqp {
namespace {

template <class T, int kKind>
const void *rows_kernel(bool registers) {
  return registers ? reinterpret_cast<const void *>(&quantize_rows<T, kKind, true>)
                   : reinterpret_cast<const void *>(&quantize_rows<T, kKind, false>);
}

template <class T>
const void *kernel_of(const QuantizeParams &p) {
  if (p.call.group_size) return reinterpret_cast<const void *>(&quantize_groups<T>);
  return p.call.kind == kInt8 ? rows_kernel<T, kInt8>(in_registers(p)) : rows_kernel<T, kFp8>(in_registers(p));
}

}  // namespace
}  // namespace vqp

using namespace vqp;

int vqp_cuda_quantize_run(const vqp_cuda_quantize *call, void *stream) {
  const int error = check_quantize(*call);
  if (error || call->m == 0) return error;
  int device, limit;
  cudaError_t failed = cudaGetDevice(&device);
  if (failed == cudaSuccess) failed = cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (failed != cudaSuccess) return runtime_error(failed);
  QuantizeParams p = quantize_params(*call, limit);
  const int64_t ctas = quantize_ctas(p);
  if (ctas > 0x7FFFFFFF) return VQP_CUDA_ESHAPE;
  const void *kernel = call->x_dtype == VQP_CUDA_F16 ? kernel_of<Half>(p) : kernel_of<BFloat16>(p);
  const int shared = quantize_smem_bytes(p);
  /* Always the maximum, not what this call needs: a concurrent call could lower the limit before this launch. */
  failed = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limit);
  if (failed != cudaSuccess) return runtime_error(failed);
  void *arguments[] = {&p};
  return launch(kernel, dim3(static_cast<unsigned>(ctas)), shared, 1, arguments, static_cast<cudaStream_t>(stream));
}
