/* The instructions of kernels/cuda/ptx.h on the CPU: one fiber per thread, the CTAs of a cluster together.
 *
 * ptx.h includes this where there is no nvcc, so the kernels' own source runs here. The emulator reports what hardware
 * does not: global accesses outside registered memory, shared accesses outside the CTA's memory, races between warps
 * that no barrier orders, and warp-wide instructions that not all lanes reach.
 */
#ifndef VQP_EMULATOR_H
#define VQP_EMULATOR_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <functional>
#include <string>

#include "half_math.h"

namespace vqp {
namespace emulator {

struct Dim {
  int x = 1, y = 1, z = 1;
};

struct Options {
  uint64_t seed = 0;       /* of the order in which warps run */
  bool late_copies = true; /* asynchronous copies complete when waited for, else when issued */
};

void reset(const Options &options);
/* Memory that kernels may access. In a dependent launch, what is not `constant` is out of bounds for a thread until its
 * griddep_wait. */
void allow(const void *pointer, size_t bytes, bool constant = false);
/* The first fault since reset, or empty. */
const std::string &fault();
/* Run a grid of CTAs of `threads` threads, `cluster` neighbours along x at a time. */
void launch(Dim grid, int threads, size_t shared_bytes, int cluster, const std::function<void()> &kernel,
            bool dependent = false);

enum class Warp { kLdmatrix2, kLdmatrix4, kMmaHalf, kMmaBFloat16, kMmaInt8, kMmaE4m3, kShuffle, kSyncwarp, kWgmmaRs, kWgmmaSs };
void warp_instruction(Warp which, void *operands);
void global_access(const void *pointer, size_t bytes);
/* `read_only`: through the non-coherent path, which does not see writes of a concurrent kernel. */
void global_load(const void *pointer, size_t bytes, bool read_only);
void global_store(const void *pointer, size_t bytes);
void global_range(const void *pointer, size_t bytes); /* of any alignment */
void shared_access(const void *pointer, size_t bytes, bool write);
void cp_async_16(void *to, const void *from, bool valid);

struct LdmatrixOperands {
  uint32_t *r;
  const void *row;
};
struct MmaOperands {
  float *c;
  const uint32_t *a, *b;
};
struct MmaInt8Operands {
  int32_t *c;
  const uint32_t *a, *b;
};
struct ShuffleOperands {
  float value;
  int mask;
  float result;
};

}  // namespace emulator

int thread_index();
int cta_x();
int cta_y();
int cta_z();
int grid_dim_y();
void syncthreads();
inline void syncwarp() { emulator::warp_instruction(emulator::Warp::kSyncwarp, nullptr); }
void cluster_sync();
char *shared_memory();
float load_shared_cluster(const void *pointer, int rank);
void cp_async_commit();
void cp_async_wait(int pending);
template <int kPending>
void cp_async_wait() {
  cp_async_wait(kPending);
}
void griddep_wait();
inline void griddep_launch_dependents() {}
constexpr bool kDependentLaunch = true;

template <class V>
V load_global(const V *pointer) {
  emulator::global_load(pointer, sizeof(V), true);
  return emulator::fault().empty() ? *pointer : V{};
}
inline void load_global(uint32_t (&v)[4], const void *pointer) {
  emulator::global_load(pointer, 16, true);
  if (emulator::fault().empty()) memcpy(v, pointer, 16);
}
template <class V>
V load_coherent(const V *pointer) {
  emulator::global_load(pointer, sizeof(V), false);
  return emulator::fault().empty() ? *pointer : V{};
}
inline void load_coherent(uint32_t (&v)[4], const void *pointer) {
  emulator::global_load(pointer, 16, false);
  if (emulator::fault().empty()) memcpy(v, pointer, 16);
}
template <class V>
void store_global(V *pointer, V value) {
  emulator::global_store(pointer, sizeof(V));
  if (emulator::fault().empty()) *pointer = value;
}
template <class V>
V load_shared(const void *pointer) {
  emulator::shared_access(pointer, sizeof(V), false);
  V value = {};
  if (emulator::fault().empty()) memcpy(&value, pointer, sizeof(V));
  return value;
}
template <class V>
void store_shared(void *pointer, V value) {
  emulator::shared_access(pointer, sizeof(V), true);
  if (emulator::fault().empty()) memcpy(pointer, &value, sizeof(V));
}

inline void cp_async(void *to, const void *from, bool valid) { emulator::cp_async_16(to, from, valid); }

inline void ldmatrix(uint32_t (&r)[2], const void *row) {
  emulator::LdmatrixOperands operands = {r, row};
  emulator::warp_instruction(emulator::Warp::kLdmatrix2, &operands);
}
inline void ldmatrix(uint32_t (&r)[4], const void *row) {
  emulator::LdmatrixOperands operands = {r, row};
  emulator::warp_instruction(emulator::Warp::kLdmatrix4, &operands);
}
template <class T>
void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t *b) {
  emulator::MmaOperands operands = {c, a, b};
  emulator::warp_instruction(T::kMantissa == Half::kMantissa ? emulator::Warp::kMmaHalf : emulator::Warp::kMmaBFloat16,
                             &operands);
}

inline void mma_int8(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t *b) {
  emulator::MmaInt8Operands operands = {c, a, b};
  emulator::warp_instruction(emulator::Warp::kMmaInt8, &operands);
}
inline void mma_e4m3(float (&c)[4], const uint32_t (&a)[4], const uint32_t *b) {
  emulator::MmaOperands operands = {c, a, b};
  emulator::warp_instruction(emulator::Warp::kMmaE4m3, &operands);
}
inline float shfl_xor(float value, int mask) {
  emulator::ShuffleOperands operands = {value, mask, 0};
  emulator::warp_instruction(emulator::Warp::kShuffle, &operands);
  return operands.result;
}

}  // namespace vqp

#endif
