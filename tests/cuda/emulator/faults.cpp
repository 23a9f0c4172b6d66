/* Small kernels with one planted fault each, and their right twins: what the emulator must tell apart. */
#include <stdint.h>

#include "emulator.h"
#include "ptx.h"

namespace vqp {
namespace {

alignas(256) float input[512];
struct alignas(256) {
  float output[64];
  float beyond;
} place;
float *const output = place.output;

/* Two warps exchange what they copied. */
void exchange(bool wait, bool wait_barrier, bool reuse_barrier) {
  float *const shared = reinterpret_cast<float *>(shared_memory());
  const int thread = thread_index();
  for (int turn = 0; turn < 2; ++turn) {
    copy_async(shared + 4 * thread, input + 256 * turn + 4 * thread, true);
    copy_commit();
    if (wait) copy_wait(0);
    if (wait_barrier) barrier();
    store_global(output + thread, load_shared<float>(shared + 4 * (63 - thread)));
    if (reuse_barrier) barrier();
  }
  copy_wait(0);
}

void diverge(bool fault) {
  char *const shared = shared_memory();
  store_shared(shared + 16 * thread_index(), uint32_t(1));
  store_shared(shared + 16 * thread_index() + 4, uint32_t(1));
  store_shared(shared + 16 * thread_index() + 8, uint32_t(1));
  store_shared(shared + 16 * thread_index() + 12, uint32_t(1));
  barrier();
  uint32_t two[2], four[4];
  if (fault && thread_index() % 32 < 16)
    load_matrices(two, shared);
  else
    load_matrices(four, shared + 16 * (thread_index() % 32));
}

/* Constant input may be read ahead, the other memory only after the wait, and every thread must wait. */
void follow(bool read_early, int skip) {
  const float ahead = load_global(input + thread_index());
  float own = read_early ? load_written(output + thread_index()) : 0;
  if (thread_index() >= skip) dependency_wait();
  if (!read_early && thread_index() >= skip) own = load_written(output + thread_index());
  if (thread_index() >= skip) store_global(output + thread_index(), ahead + own);
}
void follow_copy(bool wait) {
  if (wait) dependency_wait();
  copy_async(shared_memory() + 16 * thread_index(), output + 4 * (thread_index() % 16), true);
  copy_commit();
  copy_wait(0);
  dependency_wait();
}

void neighbour(bool before, bool after) {
  float *const shared = reinterpret_cast<float *>(shared_memory());
  store_shared(shared + thread_index(), 1.0f);
  if (before) cluster_barrier();
  store_global(output + thread_index(), load_cluster(shared + thread_index(), 1 - block_x()));
  if (after) cluster_barrier();
}

}  // namespace
}  // namespace vqp

using namespace vqp;

/* Runs toy kernel `which`; vqp_emulator_fault then tells what was found. */
extern "C" void vqp_emulator_toy(int which, uint64_t seed) {
  emulator::reset({seed, seed % 2 == 0});
  emulator::allow(input, sizeof(input), true);
  emulator::allow(output, sizeof(place.output));
  const auto block = [&](auto kernel) { emulator::launch({1, 1, 1}, 64, 1024, 1, kernel); };
  const auto pair = [&](auto kernel) { emulator::launch({2, 1, 1}, 64, 1024, 2, kernel); };
  const auto dependent = [&](auto kernel) { emulator::launch({1, 1, 1}, 64, 1024, 1, kernel, true); };
  switch (which) {
    case 0: return block([] { exchange(true, true, true); });
    case 1: return block([] { exchange(false, true, true); });
    case 2: return block([] { exchange(true, false, true); });
    case 3: return block([] { exchange(true, true, false); });
    case 4: return block([] { store_global(output + 1 + thread_index(), 0.0f); });
    case 5: return block([] { load_shared<float>(shared_memory() + 4 * thread_index()); });
    case 6: return block([] { store_shared(shared_memory() + 1020 + 4 * (thread_index() & 1), 0.0f); });
    case 7: return block([] { diverge(false); });
    case 8: return block([] { diverge(true); });
    case 9: return block([] { if (thread_index() < 32) barrier(); });
    case 10: return pair([] { neighbour(true, true); });
    case 11: return pair([] { neighbour(false, true); });
    case 12: return pair([] { neighbour(true, false); });
    case 20: return dependent([] { follow(false, 0); });
    case 21: return dependent([] { follow(true, 0); });
    case 22: return dependent([] { follow(false, 32); });
    case 23: return dependent([] { store_global(output + thread_index(), 0.0f), dependency_wait(); });
    case 24: return dependent([] { follow_copy(true); });
    case 25: return dependent([] { follow_copy(false); });
    default: return block([] { copy_async(shared_memory() + 16 * thread_index(), input + 4 * thread_index(), true); });
  }
}
