/* The state of the emulated grid, and what the parts of the emulator call of each other. */
#ifndef VQP_EMULATOR_STATE_H
#define VQP_EMULATOR_STATE_H

#include <ucontext.h>

#include <deque>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "clocks.h"
#include "emulator.h"
#include "emulator_async.h"
#include "emulator_wgmma_ss.h"
#include "wgmma_state.h"

namespace vqp {
namespace emulator {

enum class State { kReady, kWarp, kSyncthreads, kClusterSync, kMbarrier, kDone };
constexpr int kBarriers = 32; /* mbarriers per CTA */

struct CpAsync {
  void *to;
  const void *from;
  bool valid;
};

struct Lane {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  struct Cta *cta;
  int index;
  State state = State::kReady;
  Warp instruction;
  void *operands = nullptr;
  std::deque<std::vector<CpAsync>> groups;
  std::vector<CpAsync> open;
  bool waited = false; /* for the preceding kernels */
  WgmmaState wgmmas;
  int warp() const { return index / 32; }
};

/* Who wrote a 4-byte word of shared memory, and when by that agent's clock. Reads are kept by warp beside it. */
struct Word {
  int agent = -1, cluster_epoch = -1, in_flight = 0;
  uint32_t time = 0;
  int writer = -1; /* its thread; -1: a copy that a barrier counts */
  int lane = -1;   /* the same, of a write of the whole word */
  uint32_t syncwarps = 0; /* how often its warp had executed __syncwarp */
  uint64_t write_time = 0;
};

struct Phase;
struct Cta {
  Dim at, grid;
  int rank = 0;
  std::vector<Lane> lanes;
  std::unique_ptr<char[]> memory;
  char *shared;
  size_t shared_bytes;
  std::vector<Word> words;
  std::vector<uint32_t> reads; /* [word][warp]: when that warp last read it */
  std::vector<Clock> clocks;   /* of each warp */
  std::vector<uint32_t> syncwarps; /* how often each warp executed __syncwarp */
  std::map<ptrdiff_t, std::shared_ptr<Phase>> phases;
  std::map<int, std::vector<std::pair<uint64_t, uint64_t>>> descriptors; /* of the wgmmas of each warpgroup */
  int cluster_epoch = 0, at_syncthreads = 0, at_cluster_sync = 0, done = 0;
};
inline int warps_of(const Cta &cta) { return static_cast<int>(cta.lanes.size()) / 32; }
inline int first_agent(const Cta &cta) { return cta.rank * (warps_of(cta) + kBarriers); }
inline int agent_of(const Lane &lane) { return first_agent(*lane.cta) + lane.warp(); }
inline Clock &clock_of(const Lane &lane) { return lane.cta->clocks[lane.warp()]; }

/* A barrier's agent stands for the copies that it counts, its time for the phase. */
struct Phase {
  int count = 0, pending = 0, agent = 0, initializer = 0;
  int64_t bytes = 0;
  uint32_t phase = 0;
  uint64_t initialized = 0;
  Clock seen, completed;
};

struct TmaCopy { /* one copy into one CTA */
  Cta *cta;
  ptrdiff_t barrier, to;
  std::vector<char> bytes;
};

/* The launch. */
extern Options options;
extern std::mt19937_64 random_order;
extern bool dependent_launch;
extern uint64_t clock_ticks;
extern std::vector<std::unique_ptr<Cta>> cluster;
extern Lane *current;
extern std::vector<TmaCopy> tma_copies;

/* scheduler.cpp */
void report(const std::string &what); /* the first fault is kept */
bool faulty();
void suspend(State why);
void release(Cta &cta, State from);

/* shared_memory.cpp */
Word *words_of(Cta &cta, const void *pointer, size_t bytes, const char *what);
void check_write(Cta &cta, const Word &w, int warp, const Clock &clock, bool foreign);
void note_write(Cta &cta, void *pointer, size_t bytes, int warp);
void note_read(Cta &cta, const void *pointer, size_t bytes, int warp, const Clock &clock);
void note_read(Cta &cta, const void *pointer, size_t bytes, int warp);

/* global_memory.cpp */
void forget_memory();
void forget_stores();

/* async.cpp */
bool land_any_copy();

/* warp.cpp and wgmma.cpp: what a whole warp executes, `lanes` its 32. */
const float *float_values(bool half);
float e4m3_of(uint32_t code);
void run_wgmma_rs(Lane *lanes);
void run_wgmma_ss(Lane *lanes);

}  // namespace emulator
}  // namespace vqp

#endif
