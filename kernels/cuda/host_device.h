/* Qualifiers that let one source be a CUDA kernel (nvcc) and a CPU program (g++, the emulator of tests/cuda). */
#ifndef VQP_CUDA_HOST_DEVICE_H
#define VQP_CUDA_HOST_DEVICE_H

#include <stdint.h>

#ifdef __CUDACC__
#define VQP_HD __host__ __device__ __forceinline__
#define VQP_DEVICE __device__ __forceinline__
#else
#define VQP_HD inline
#define VQP_DEVICE inline
#endif

#ifdef __CUDA_ARCH__
#define VQP_UNROLL _Pragma("unroll")
#define VQP_PRAGMA(text) _Pragma(#text)
#define VQP_UNROLL_BY(n) VQP_PRAGMA(unroll n)
#else
#define VQP_UNROLL
#define VQP_UNROLL_BY(n)
#endif

namespace vqp {

VQP_HD constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace vqp

#endif
