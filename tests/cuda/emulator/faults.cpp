/* Small kernels with one planted fault each, and their correct versions: the emulator must distinguish them. */
#include <stdint.h>

#include "async.h"
#include "emulator.h"
#include "fragments.h"
#include "ptx.h"
#include "wgmma_rs.h"

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
    cp_async(shared + 4 * thread, input + 256 * turn + 4 * thread, true);
    cp_async_commit();
    if (wait) cp_async_wait(0);
    if (wait_barrier) syncthreads();
    store_global(output + thread, load_shared<float>(shared + 4 * (63 - thread)));
    if (reuse_barrier) syncthreads();
  }
  cp_async_wait(0);
}

void diverge(bool fault) {
  char *const shared = shared_memory();
  store_shared(shared + 16 * thread_index(), uint32_t(1));
  store_shared(shared + 16 * thread_index() + 4, uint32_t(1));
  store_shared(shared + 16 * thread_index() + 8, uint32_t(1));
  store_shared(shared + 16 * thread_index() + 12, uint32_t(1));
  syncthreads();
  uint32_t two[2], four[4];
  if (fault && thread_index() % 32 < 16)
    ldmatrix(two, shared);
  else
    ldmatrix(four, shared + 16 * (thread_index() % 32));
}

/* Constant input may be read before the wait, other memory only after it, and every thread must wait. */
void follow(bool read_early, int skip) {
  const float ahead = load_global(input + thread_index());
  float own = read_early ? load_coherent(output + thread_index()) : 0;
  if (thread_index() >= skip) griddep_wait();
  if (!read_early && thread_index() >= skip) own = load_coherent(output + thread_index());
  if (thread_index() >= skip) store_global(output + thread_index(), ahead + own);
}
void follow_copy(bool wait) {
  if (wait) griddep_wait();
  cp_async(shared_memory() + 16 * thread_index(), output + 4 * (thread_index() % 16), true);
  cp_async_commit();
  cp_async_wait(0);
  griddep_wait();
}

enum class Slip { kNone, kProxy, kSyncthreads, kFence, kRegisters, kSums, kShared, kWait, kSwizzle, kReuse };

/* A warpgroup multiplies 64 channels by 64 tokens: A is all ones, B is token + 1 in column 0, so each sum is token +
 * 1. */
void multiply(Slip slip) {
  const int thread = thread_index(), lane = thread & 31;
  char *const tile = shared_memory();
  for (int i = thread; i < 64 * 8; i += 128) /* 16-byte chunks */
    for (int word = 0; word < 4; ++word) {
      const int token = i / 8, chunk = i % 8;
      const uint32_t value = chunk == 0 && word == 0 ? to_pair<Half>(static_cast<float>(token + 1), 0) : 0;
      store_shared(tile + swizzled(token, chunk) + 4 * word, value);
    }
  if (slip != Slip::kProxy) fence_proxy_async();
  if (slip != Slip::kSyncthreads) syncthreads();
  float c[8][4] = {};
  uint32_t a[4] = {Half::kOne, Half::kOne, Half::kOne, Half::kOne};
  uint64_t b = tile_descriptor(shared_address(tile));
  if (slip == Slip::kSwizzle) b &= ~(uint64_t(3) << 62);
  if (slip != Slip::kFence) wgmma_fence();
  wgmma_rs<Half>(c, a, b, false);
  wgmma_commit();
  if (slip == Slip::kRegisters) a[1] = 0;
  if (slip == Slip::kSums) c[0][0] += 1;
  if (slip == Slip::kShared) store_shared(tile + 4 * thread, uint32_t(0));
  if (slip == Slip::kWait) return;
  wgmma_wait<0>(c);
  if (slip == Slip::kReuse) {
    wgmma_rs<Half>(c, a, b, true);
    wgmma_commit();
    wgmma_wait<0>(c);
  }
  for (int t = 0; t < 8; ++t)
    for (int i = 0; i < 4; ++i)
      if (c[t][i] != static_cast<float>(8 * t + c_col(lane, i) + 1)) store_global(output - 1, 0.0f); /* out of bounds */
}

enum class Trip {
  kNone, kFull, kEmpty, kBytes, kFence, kArrivals, kEarly, kParity, kPlace, kExit, kNeighbour, kStart
};

/* One thread per CTA loads pieces of 256 bytes through a ring of two stages into both CTAs of the pair, each CTA
 * half of a piece. A warp of each CTA reads them and arrives at the empty barriers of both CTAs. */
void pipeline(Trip trip) {
  constexpr int kPieces = 4, kBlocks = 2, kHalf = 128;
  char *const ring = shared_memory();
  Mbarrier *const full = reinterpret_cast<Mbarrier *>(ring + 512), *const empty = full + 2;
  const int thread = thread_index(), rank = cluster_rank();
  if (thread == 0) {
    for (int slot = 0; slot < 2; ++slot) {
      mbarrier_init(full + slot, 1);
      mbarrier_init(empty + slot, trip == Trip::kArrivals ? 1 : kBlocks);
    }
    if (trip != Trip::kFence) fence_mbarrier_init();
  }
  if (trip == Trip::kStart)
    syncthreads();
  else
    cluster_sync();
  TensorMap map;
  map.base = reinterpret_cast<const char *>(input), map.rows = kPieces, map.columns = map.stride = 256, map.box = 1;
  for (int i = 0; i < kPieces; ++i) {
    const int slot = i % 2, parity = i / 2 % 2;
    char *const stage = ring + (trip == Trip::kPlace ? 64 : 0);
    if (thread == 0) {
      if (i >= 2 && trip != Trip::kEmpty) mbarrier_wait_cluster(empty + slot, parity ^ 1);
      mbarrier_arrive_expect_tx(full + slot, 2 * kHalf + (trip == Trip::kBytes ? 16 : 0));
      if (trip == Trip::kPlace) {
        tma_load(stage, map, 0, i, full + slot);
        continue;
      }
      /* Bulk copies: TMA boxes would have to be 1024-byte aligned. */
      for (int other = 0; other < kBlocks; ++other)
        emulator::copy_to_cta(other, stage + 256 * slot + kHalf * rank, input + 64 * i + 32 * rank, kHalf, full + slot);
    }
    if (thread < 32) continue;
    if (trip != Trip::kFull) mbarrier_wait(full + slot, trip == Trip::kParity ? parity ^ 1 : parity);
    syncwarp();
    if (trip == Trip::kEarly && thread < 34) mbarrier_arrive_cluster(empty + slot, thread - 32);
    for (int j = 0; j < 2; ++j) load_shared<float>(stage + 256 * slot + 8 * (thread - 32) + 4 * j);
    syncwarp();
    const bool both = trip != Trip::kNeighbour;
    if (trip != Trip::kEarly && thread < (both ? 34 : 33)) mbarrier_arrive_cluster(empty + slot, both ? thread - 32 : rank);
  }
  if (trip != Trip::kExit) cluster_sync();
}

void neighbour(bool before, bool after) {
  float *const shared = reinterpret_cast<float *>(shared_memory());
  store_shared(shared + thread_index(), 1.0f);
  if (before) cluster_sync();
  const float value = load_shared_cluster(shared + thread_index(), 1 - cta_x());
  if (thread_index() < 32) store_global(output + 32 * cta_x() + thread_index(), value);
  if (after) cluster_sync();
}

/* Lanes of a warp exchange words. */
void among_lanes(bool wait) {
  float *const shared = reinterpret_cast<float *>(shared_memory()) + (thread_index() & 32);
  const int lane = thread_index() & 31;
  for (int turn = 0; turn < 2; ++turn) {
    store_shared(shared + lane, static_cast<float>(turn));
    if (wait || turn == 0) syncwarp();
    store_global(output + thread_index(), load_shared<float>(shared + 31 - lane));
    syncwarp();
  }
}

}  // namespace
}  // namespace vqp

using namespace vqp;

/* Run toy kernel `which`; vqp_emulator_fault then returns what was found. */
extern "C" void vqp_emulator_toy(int which, uint64_t seed) {
  emulator::reset({seed, seed % 2 == 0});
  emulator::allow(input, sizeof(input), true);
  emulator::allow(output, sizeof(place.output));
  const auto cta = [&](auto kernel) { emulator::launch({1, 1, 1}, 64, 1024, 1, kernel); };
  const auto pair = [&](auto kernel) { emulator::launch({2, 1, 1}, 64, 1024, 2, kernel); };
  const auto dependent = [&](auto kernel) { emulator::launch({1, 1, 1}, 64, 1024, 1, kernel, true); };
  switch (which) {
    case 0: return cta([] { exchange(true, true, true); });
    case 1: return cta([] { exchange(false, true, true); });
    case 2: return cta([] { exchange(true, false, true); });
    case 3: return cta([] { exchange(true, true, false); });
    case 4: return cta([] { store_global(output + 1 + thread_index(), 0.0f); });
    case 5: return cta([] { load_shared<float>(shared_memory() + 4 * thread_index()); });
    case 6: return cta([] { store_shared(shared_memory() + 1020 + 4 * (thread_index() & 1), 0.0f); });
    case 7: return cta([] { diverge(false); });
    case 8: return cta([] { diverge(true); });
    case 9: return cta([] { if (thread_index() < 32) syncthreads(); });
    case 10: return pair([] { neighbour(true, true); });
    case 11: return pair([] { neighbour(false, true); });
    case 12: return pair([] { neighbour(true, false); });
    case 13: return cta([] { among_lanes(true); });
    case 14: return cta([] { among_lanes(false); });
    case 15: return cta([] { store_shared(shared_memory() + thread_index() / 2 * 4, 0.0f); });
    case 16: return cta([] { store_global(output + thread_index() / 2, 0.0f); });
    case 17: return cta([] {
      store_global(output + thread_index(), 0.0f), syncthreads(), load_coherent(output + 63 - thread_index());
    });
    case 26: return dependent([] { griddep_wait(), load_global(output + thread_index()); });
    case 27: return dependent([] { griddep_wait(), load_coherent(output + thread_index()); });
    case 20: return dependent([] { follow(false, 0); });
    case 21: return dependent([] { follow(true, 0); });
    case 22: return dependent([] { follow(false, 32); });
    case 23: return dependent([] { store_global(output + thread_index(), 0.0f), griddep_wait(); });
    case 24: return dependent([] { follow_copy(true); });
    case 25: return dependent([] { follow_copy(false); });
    case 40: case 41: case 42: case 43: case 44: case 45: case 46: case 47: case 48: case 49: case 50: case 51:
      return pair([&] { pipeline(static_cast<Trip>(which - 40)); });
    case 30: case 31: case 32: case 33: case 34: case 35: case 36: case 37: case 38: case 39:
      return emulator::launch({1, 1, 1}, 128, 8192, 1, [&] { multiply(static_cast<Slip>(which - 30)); });
    default: return cta([] { cp_async(shared_memory() + 16 * thread_index(), input + 4 * thread_index(), true); });
  }
}
