/* The instructions of the kernels, one function each, named after the PTX or CUDA intrinsic. Under nvcc they are inline
 * PTX; without nvcc the same names come from the emulator of tests/cuda, which runs the threads of a CTA on the CPU.
 */
#ifndef VQP_CUDA_PTX_H
#define VQP_CUDA_PTX_H

#include "half_math.h"

#ifndef __CUDACC__
#include "emulator.h"
#else

namespace vqp {

#define VQP_KERNEL(threads, ctas) __global__ void __launch_bounds__(threads, ctas)
#define VQP_PARAMETER __grid_constant__

VQP_DEVICE int thread_index() { return threadIdx.x; }
VQP_DEVICE int cta_x() { return blockIdx.x; }
VQP_DEVICE int cta_y() { return blockIdx.y; }
VQP_DEVICE int cta_z() { return blockIdx.z; }
VQP_DEVICE int grid_dim_y() { return gridDim.y; }
VQP_DEVICE void syncthreads() { __syncthreads(); }
/* ldmatrix and mma need a converged warp; preceding branches may have diverged it. */
VQP_DEVICE void syncwarp() { __syncwarp(); }

/* Dynamic shared memory, aligned for the 128-byte swizzle of wgmma. */
VQP_DEVICE char *shared_memory() {
  extern __shared__ __align__(1024) char vqp_shared[];
  return vqp_shared;
}
VQP_DEVICE uint32_t shared_address(const void *pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

template <class V>
VQP_DEVICE V load_global(const V *pointer) {
  return __ldg(pointer);
}
/* 16 aligned bytes. */
VQP_DEVICE void load_global(uint32_t (&v)[4], const void *pointer) {
  const uint4 four = __ldg(static_cast<const uint4 *>(pointer));
  v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
}
/* For memory that the preceding kernel may write while this one runs: not through the non-coherent read-only path. */
template <class V>
VQP_DEVICE V load_coherent(const V *pointer) {
  return *pointer;
}
VQP_DEVICE void load_coherent(uint32_t (&v)[4], const void *pointer) {
  const uint4 four = *static_cast<const uint4 *>(pointer);
  v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
}
template <class V>
VQP_DEVICE void store_global(V *pointer, V value) {
  *pointer = value;
}
template <class V>
VQP_DEVICE V load_shared(const void *pointer) {
  return *static_cast<const V *>(pointer);
}
template <class V>
VQP_DEVICE void store_shared(void *pointer, V value) {
  *static_cast<V *>(pointer) = value;
}

/* Copy 16 bytes to shared memory. Unless `valid`, nothing is read and zeros are written. Without L2::cache_hint: ptxas
 * of CUDA 13.0 and 13.1 may drop the createpolicy of a cp.async for sm_90, so that LDGSTS takes its descriptor from a
 * uniform register that nothing has written: an illegal instruction (tests/cuda/uniform.py looks for such). */
VQP_DEVICE void cp_async(void *to, const void *from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}
VQP_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/* Wait until at most `pending` of this thread's cp.async groups are in flight: 0, 2 or 6. */
VQP_DEVICE void cp_async_wait(int pending) {
  if (pending == 2)
    asm volatile("cp.async.wait_group 2;" ::: "memory");
  else if (pending == 6)
    asm volatile("cp.async.wait_group 6;" ::: "memory");
  else
    asm volatile("cp.async.wait_group 0;" ::: "memory");
}

template <int kPending>
VQP_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

/* Programmatic dependent launch (sm_90): wait until the preceding kernels have ended and their writes are visible; let
 * the next kernel start. Neither has an effect in a kernel that was launched without the attribute. */
VQP_DEVICE void griddep_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
VQP_DEVICE void griddep_launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
#if __CUDA_ARCH__ >= 900
constexpr bool kDependentLaunch = true;
#else
constexpr bool kDependentLaunch = false;
#endif

/* Load 8 x 8 matrices of 16-bit elements. Lane i provides the address of row i % 8 of matrix i / 8. Lane l receives, in
 * r[j], columns 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of matrix j. */
VQP_DEVICE void ldmatrix(uint32_t (&r)[2], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}
VQP_DEVICE void ldmatrix(uint32_t (&r)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

template <class T>
VQP_DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t *b);
template <>
VQP_DEVICE void mma<Half>(float (&c)[4], const uint32_t (&a)[4], const uint32_t *b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
VQP_DEVICE void mma<BFloat16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t *b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* The same with 8-bit operands, 16 x 32 by 32 x 8. E4M3 needs sm_89; on older targets its kernels are empty. */
VQP_DEVICE void mma_int8(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t *b) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
VQP_DEVICE void mma_e4m3(float (&c)[4], const uint32_t (&a)[4], const uint32_t *b) {
#if __CUDA_ARCH__ >= 890
  asm("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

/* The value of lane ^ mask. */
VQP_DEVICE float shfl_xor(float value, int mask) { return __shfl_xor_sync(0xFFFFFFFFu, value, mask); }

/* Clusters (sm_90): a barrier over all CTAs, and a float from the shared memory of another CTA. */
VQP_DEVICE void cluster_sync() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
#endif
}
VQP_DEVICE float load_shared_cluster(const void *pointer, int rank) {
  float value = 0;
#if __CUDA_ARCH__ >= 900
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(pointer)), "r"(rank));
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
#endif
  return value;
}

}  // namespace vqp

#endif
#endif
