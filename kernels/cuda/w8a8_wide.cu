/* The kernels of w8a8_wide_kernel.h and their launch with tensor maps. They are empty except in code for sm_90a. */
#include <cudaTypedefs.h>

#include "runtime.h"
#include "w8a8_wide.h"
#include "w8a8_wide_entry.h"

namespace vqp {
namespace {

const void *kernel_of(const vqp_cuda_w8a8 &c, int channels) {
  if (c.kind == kFp8 && (c.grouped || c.promote)) return reinterpret_cast<const void *>(&w8a8_wide<kFp8, 128, true>);
  if (c.kind == kFp8)
    return channels == 128 ? reinterpret_cast<const void *>(&w8a8_wide<kFp8, 128, false>)
                           : reinterpret_cast<const void *>(&w8a8_wide<kFp8, 256, false>);
  return channels == 128 ? reinterpret_cast<const void *>(&w8a8_wide<kInt8, 128, false>)
                         : reinterpret_cast<const void *>(&w8a8_wide<kInt8, 256, false>);
}

/* The driver's tensor map encoder, looked up so that nothing links to the driver; null where it has none. */
PFN_cuTensorMapEncodeTiled_v12000 find_encoder() {
  void *found = nullptr;
  cudaDriverEntryPointQueryResult result;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
  if (error != cudaSuccess || result != cudaDriverEntryPointSuccess) return nullptr;
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(found);
}

int encode(const W8a8WideMatrix &m, TensorMap *map) {
  static const PFN_cuTensorMapEncodeTiled_v12000 encoder = find_encoder();
  if (!encoder) return VQP_CUDA_EDEVICE;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(m.columns), static_cast<cuuint64_t>(m.rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(m.stride)};
  const cuuint32_t box[] = {kRow, static_cast<cuuint32_t>(m.box)}, steps[] = {1, 1};
  const CUresult result = encoder(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<void *>(m.base), sizes, strides,
                                  box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                  CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? VQP_CUDA_OK : VQP_CUDA_ERUNTIME + static_cast<int>(result);
}

}  // namespace

int w8a8_wide_available(bool *available) {
  cudaFuncAttributes attributes;
  vqp_cuda_w8a8 any = {};
  any.kind = kInt8;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel_of(any, 128));
  if (error != cudaSuccess) return runtime_error(error);
  *available = attributes.maxThreadsPerBlock >= kW8a8WideThreads;
  return VQP_CUDA_OK;
}

int run_w8a8_wide(const vqp_cuda_w8a8 &call, const vqp_cuda_w8a8_plan &plan, void *stream) {
  W8a8WideParams p = w8a8_wide_params(call, plan);
  int error = encode(w8a8_wide_x(call), &p.x);
  if (!error) error = encode(w8a8_wide_w(call, plan), &p.w);
  if (error) return error;
  const void *const kernel = kernel_of(call, plan.channels);
  const cudaError_t failed =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, plan.shared_bytes);
  if (failed != cudaSuccess) return runtime_error(failed);
  void *arguments[] = {&p};
  return launch(kernel, dim3(plan.ctas), plan.shared_bytes, p.cluster, arguments, static_cast<cudaStream_t>(stream),
                plan.dependent, kW8a8WideThreads);
}

}  // namespace vqp
