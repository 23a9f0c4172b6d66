/* CUDA runtime helpers of the C interfaces: error codes, the limits of a device, launches. Host code only. */
#ifndef VQP_CUDA_RUNTIME_H
#define VQP_CUDA_RUNTIME_H

#include <cuda_runtime.h>

#include "cost_model.h"
#include "vqp_cuda.h"

namespace vqp {

constexpr int kMaxDevices = 64;

inline int runtime_error(cudaError_t error) {
  return error == cudaSuccess ? VQP_CUDA_OK : VQP_CUDA_ERUNTIME + error;
}

/* Limits of device `index`. It has clusters only where the code of `probe` was compiled for sm_90; code from the PTX of
 * an older target has none. `capability` is 10 * major + minor of the device or of the code of `probe`, the lower. */
inline int read_device(int index, const void *probe, Device *device, int *capability) {
  int major = 0, minor = 0;
  cudaFuncAttributes attributes = {};
  Device d = {};
  cudaError_t error = cudaDeviceGetAttribute(&d.sms, cudaDevAttrMultiProcessorCount, index);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&d.smem_per_cta, cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&d.smem_per_sm, cudaDevAttrMaxSharedMemoryPerMultiprocessor, index);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index);
  if (error == cudaSuccess && major < 8) return VQP_CUDA_EDEVICE;
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, probe);
  if (error != cudaSuccess) return runtime_error(error);
  d.clusters = major >= 9 && attributes.ptxVersion >= 90;
  *device = d;
  *capability = 10 * major + minor < attributes.ptxVersion ? 10 * major + minor : attributes.ptxVersion;
  return VQP_CUDA_OK;
}

/* `dependent`: the kernel may start before the preceding one in the stream has ended, and waits for it itself. */
inline int launch(const void *kernel, dim3 grid, int shared, int cluster, void **arguments, cudaStream_t stream,
                  bool dependent = false, int threads = kThreads) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  cudaLaunchAttribute attributes[2] = {};
  config.attrs = attributes;
  if (cluster > 1) {
    cudaLaunchAttribute &attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = cluster;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  }
  if (dependent) {
    cudaLaunchAttribute &attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  return runtime_error(cudaLaunchKernelExC(&config, kernel, arguments));
}

}  // namespace vqp

#endif
