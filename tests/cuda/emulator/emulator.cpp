#include "emulator.h"

#include <ucontext.h>

#include <deque>
#include <map>
#include <memory>
#include <random>
#include <unordered_map>
#include <vector>

#include "clocks.h"
#include "emulator_async.h"
#include "emulator_wgmma_ss.h"
#include "fragments.h"
#include "numeric8.h"
#include "wgmma_state.h"

namespace vqp {
namespace emulator {
namespace {

constexpr size_t kStack = 64 << 10;
enum class State { kReady, kWarp, kSyncthreads, kClusterSync, kMbarrier, kDone };
constexpr int kBarriers = 32; /* in shared memory, of a block */

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
  bool waited = false; /* for the kernels ahead */
  WgmmaState wgmmas;
  int warp() const { return index / 32; }
};

/* Who wrote a 4-byte word of shared memory, and when by that agent's clock. Reads are kept by warp beside it. */
struct Word {
  int agent = -1, cluster_epoch = -1, in_flight = 0;
  uint32_t time = 0;
  int writer = -1; /* its thread; -1: a copy that a barrier counts */
  int lane = -1;   /* the same, of a write of the whole word */
  uint32_t syncwarps = 0; /* how often its warp had converged */
  uint64_t write_time = 0;
};

struct Phase;
struct Cta { /* a block */
  Dim at, grid;
  int rank = 0;
  std::vector<Lane> lanes;
  std::unique_ptr<char[]> memory;
  char *shared;
  size_t shared_bytes;
  std::vector<Word> words;
  std::vector<uint32_t> reads; /* [word][warp]: when that warp last read it */
  std::vector<Clock> clocks;   /* of each warp */
  std::vector<uint32_t> syncwarps; /* how often each warp did */
  std::map<ptrdiff_t, std::shared_ptr<Phase>> phases;
  std::map<int, std::vector<std::pair<uint64_t, uint64_t>>> descriptors; /* of the products of each warpgroup */
  int cluster_epoch = 0, at_syncthreads = 0, at_cluster_sync = 0, done = 0;
};
int warps_of(const Cta &cta) { return static_cast<int>(cta.lanes.size()) / 32; }
int first_agent(const Cta &cta) { return cta.rank * (warps_of(cta) + kBarriers); }
int agent_of(const Lane &lane) { return first_agent(*lane.cta) + lane.warp(); }
Clock &clock_of(const Lane &lane) { return lane.cta->clocks[lane.warp()]; }

Options options;
std::mt19937_64 random_order;
struct Memory {
  size_t bytes;
  bool constant;
};
std::map<uintptr_t, Memory> allowed;
std::unordered_map<const void *, int> stores;
bool dependent_launch;
std::string first_fault;
uint64_t clock_ticks = 0;
std::vector<std::unique_ptr<Cta>> cluster;
const std::function<void()> *body;
ucontext_t scheduler;
Lane *current;

void report(const std::string &what) {
  if (!first_fault.empty()) return;
  const Cta &b = *current->cta;
  first_fault = what + " (block " + std::to_string(b.at.x) + "," + std::to_string(b.at.y) + "," +
                std::to_string(b.at.z) + " thread " + std::to_string(current->index) + ")";
}

void suspend(State why) {
  Lane *const self = current;
  self->state = why;
  swapcontext(&self->context, &scheduler);
}

void enter() {
  (*body)();
  Lane *const self = current;
  if (!self->groups.empty() || !self->open.empty()) report("a thread ended with copies under way");
  if (!self->wgmmas.groups.empty() || !self->wgmmas.open.empty()) report("a thread ended with products under way");
  if (dependent_launch && !self->waited) report("a thread ended without waiting for the kernel ahead");
  self->state = State::kDone;
  ++self->cta->done;
  swapcontext(&self->context, &scheduler);
}

#include "shared_model.h"

void land(const CpAsync &copy) {
  if (!first_fault.empty()) return;
  if (copy.valid)
    memcpy(copy.to, copy.from, 16);
  else
    memset(copy.to, 0, 16);
}

/* A copy's effect may show at any time between issue and wait: it is a write at both ends. */
void finish(Lane &lane, std::vector<CpAsync> &copies) {
  for (const CpAsync &copy : copies) {
    Word *word = words_of(*lane.cta, copy.to, 16, "copy");
    for (int i = 0; word && i < 4; ++i) --word[i].in_flight;
    if (options.late_copies) land(copy);
    note_write(*lane.cta, copy.to, 16, lane.warp());
  }
}

#include "warp_model.h"

void release(Cta &cta, State from) {
  for (Lane &lane : cta.lanes)
    if (lane.state == from) lane.state = State::kReady;
}

#include "wgmma_model.h"
#include "wgmma_ss_model.h"
#include "async_model.h"

/* Runs one warp as far as it gets, then another at random: the worst order that the barriers allow. */
void run_cluster() {
  for (;;) {
    std::vector<std::pair<Cta *, int>> ready;
    size_t done = 0;
    for (auto &cta : cluster) {
      const int warps = static_cast<int>(cta->lanes.size()) / 32;
      done += cta->done == static_cast<int>(cta->lanes.size());
      for (int w = 0; w < warps; ++w)
        for (int lane = 0; lane < 32; ++lane)
          if (cta->lanes[32 * w + lane].state == State::kReady) {
            ready.push_back({cta.get(), w});
            break;
          }
    }
    if (done == cluster.size()) {
      if (!tma_copies.empty()) report("a block ended with copies under way");
      for (auto &cta : cluster)
        for (const auto &[at, phase] : cta->phases)
          if (phase->bytes) report("a block ended with a barrier that expects bytes");
      return;
    }
    if (ready.empty() && first_fault.empty() && land_any_copy()) continue;
    if (ready.empty()) {
      if (first_fault.empty()) first_fault = "deadlock: no thread can go on";
      return;
    }
    const auto [cta, warp] = ready[random_order() % ready.size()];
    for (bool any = true; any;) {
      any = false;
      for (int i = 0; i < 32; ++i) {
        Lane &lane = cta->lanes[32 * warp + i];
        if (lane.state != State::kReady) continue;
        any = true;
        current = &lane;
        swapcontext(&scheduler, &lane.context);
      }
    }
  }
}

void meet_ctas(const std::vector<Cta *> &ctas) {
  std::vector<Clock *> clocks;
  std::vector<int> agents;
  for (Cta *cta : ctas)
    for (int warp = 0; warp < warps_of(*cta); ++warp) {
      clocks.push_back(&cta->clocks[warp]);
      agents.push_back(first_agent(*cta) + warp);
    }
  meet(clocks, agents);
}

}  // namespace

void reset(const Options &chosen) {
  options = chosen;
  random_order.seed(chosen.seed);
  allowed.clear();
  first_fault.clear();
}

void allow(const void *pointer, size_t bytes, bool constant) {
  if (pointer) allowed[reinterpret_cast<uintptr_t>(pointer)] = {bytes, constant};
}

const std::string &fault() { return first_fault; }

void global_access(const void *pointer, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(pointer) % bytes)
    report("global access of " + std::to_string(bytes) + " bytes outside every tensor");
  global_range(pointer, bytes);
}

/* Who stored at an address in this launch: no other thread may store or load there. */
int thread_of_grid() {
  const Cta &b = *current->cta;
  return ((b.at.z * b.grid.y + b.at.y) * b.grid.x + b.at.x) * static_cast<int>(b.lanes.size()) + current->index;
}
void global_load(const void *pointer, size_t bytes, bool read_only) {
  global_access(pointer, bytes);
  const auto stored = stores.find(pointer);
  if (stored != stores.end() && stored->second != thread_of_grid()) report("what another thread stored is loaded");
  const auto memory = allowed.upper_bound(reinterpret_cast<uintptr_t>(pointer));
  if (read_only && dependent_launch && memory != allowed.begin() && !std::prev(memory)->second.constant)
    report("memory of the kernel ahead is read through the read-only path");
}
void global_store(const void *pointer, size_t bytes) {
  global_access(pointer, bytes);
  if (!stores.emplace(pointer, thread_of_grid()).second && stores[pointer] != thread_of_grid())
    report("two threads store at one address");
}

void global_range(const void *pointer, size_t bytes) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(pointer);
  auto next = allowed.upper_bound(at);
  const bool inside = next != allowed.begin() && at + bytes <= (--next)->first + next->second.bytes;
  if (!inside) report("global access of " + std::to_string(bytes) + " bytes outside every tensor");
  else if (dependent_launch && !next->second.constant && !current->waited)
    report("memory of the kernel ahead is touched before the wait for it");
}

void shared_access(const void *pointer, size_t bytes, bool write) {
  if (write)
    note_write(*current->cta, const_cast<void *>(pointer), bytes, current->warp());
  else
    note_read(*current->cta, pointer, bytes, current->warp());
}

void cp_async_16(void *to, const void *from, bool valid) {
  if (valid) global_access(from, 16);
  note_write(*current->cta, to, 16, current->warp());
  if (!first_fault.empty()) return;
  Word *word = words_of(*current->cta, to, 16, "copy");
  for (int i = 0; word && i < 4; ++i) ++word[i].in_flight;
  current->open.push_back({to, from, valid});
  if (!options.late_copies) land(current->open.back());
}

void warp_instruction(Warp which, void *operands) {
  Lane *const self = current;
  self->instruction = which, self->operands = operands;
  Lane *const lanes = &self->cta->lanes[self->warp() * 32];
  for (int i = 0; i < 32; ++i)
    if (lanes[i].state != State::kWarp && &lanes[i] != self) {
      suspend(State::kWarp);
      return;
    }
  for (int i = 0; i < 32; ++i)
    if (lanes[i].instruction != which) report("lanes of a warp meet in different instructions");
  if (first_fault.empty()) switch (which) {
      case Warp::kLdmatrix2: run_ldmatrix(lanes, 2); break;
      case Warp::kLdmatrix4: run_ldmatrix(lanes, 4); break;
      case Warp::kMmaHalf: run_mma(lanes, true); break;
      case Warp::kMmaBFloat16: run_mma(lanes, false); break;
      case Warp::kWgmmaRs: run_wgmma_rs(lanes); break;
      case Warp::kWgmmaSs: run_wgmma_ss(lanes); break;
      case Warp::kMmaInt8:
        run_mma8<MmaInt8Operands, int32_t>(lanes, [](uint32_t code) { return static_cast<int8_t>(code); });
        break;
      case Warp::kMmaE4m3: run_mma8<MmaOperands, float>(lanes, e4m3_table); break;
      case Warp::kShuffle: run_shuffle(lanes); break;
      case Warp::kSyncwarp: ++self->cta->syncwarps[self->warp()]; break;
    }
  for (int i = 0; i < 32; ++i)
    if (&lanes[i] != self) lanes[i].state = State::kReady;
}

void wgmma_wait(int pending) { wait_wgmmas(*current, pending); }
uint32_t shared_offset(const void *pointer) {
  return static_cast<uint32_t>(static_cast<const char *>(pointer) - current->cta->shared);
}

void launch(Dim grid, int threads, size_t shared_bytes, int cluster_size, const std::function<void()> &kernel,
            bool dependent) {
  body = &kernel;
  dependent_launch = dependent;
  tma_copies.clear();
  stores.clear();
  for (int z = 0; z < grid.z; ++z)
    for (int y = 0; y < grid.y; ++y)
      for (int x = 0; x < grid.x; x += cluster_size) {
        if (!first_fault.empty()) return;
        cluster.clear();
        for (int rank = 0; rank < cluster_size; ++rank) {
          cluster.push_back(std::make_unique<Cta>());
          Cta &cta = *cluster.back();
          cta.at = {x + rank, y, z};
          cta.rank = rank;
          cta.grid = grid;
          cta.shared_bytes = shared_bytes;
          cta.memory.reset(new char[shared_bytes + 128]);
          cta.shared = cta.memory.get() + (-reinterpret_cast<uintptr_t>(cta.memory.get()) & 127);
          memset(cta.shared, 0xFF, shared_bytes); /* NaN in every format */
          cta.words.resize((shared_bytes + 3) / 4);
          cta.lanes.resize(threads);
          cta.reads.assign(cta.words.size() * warps_of(cta), 0);
          cta.syncwarps.assign(warps_of(cta), 0);
          const int agents = cluster_size * (warps_of(cta) + kBarriers);
          for (int warp = 0; warp < warps_of(cta); ++warp) {
            cta.clocks.push_back(Clock(agents, 0));
            cta.clocks.back()[first_agent(cta) + warp] = 1;
          }
          for (int i = 0; i < threads; ++i) {
            Lane &lane = cta.lanes[i];
            lane.cta = &cta, lane.index = i;
            lane.stack.reset(new char[kStack]);
            getcontext(&lane.context);
            lane.context.uc_stack.ss_sp = lane.stack.get();
            lane.context.uc_stack.ss_size = kStack;
            lane.context.uc_link = nullptr;
            makecontext(&lane.context, enter, 0);
          }
        }
        run_cluster();
      }
  cluster.clear();
}

}  // namespace emulator

using emulator::current;

int thread_index() { return current->index; }
int cta_x() { return current->cta->at.x; }
int cta_y() { return current->cta->at.y; }
int cta_z() { return current->cta->at.z; }
int grid_dim_y() { return current->cta->grid.y; }
char *shared_memory() { return current->cta->shared; }

void syncthreads() {
  emulator::Cta &cta = *current->cta;
  if (cta.done) emulator::report("a barrier after threads have ended");
  if (++cta.at_syncthreads < static_cast<int>(cta.lanes.size())) return emulator::suspend(emulator::State::kSyncthreads);
  cta.at_syncthreads = 0;
  emulator::meet_ctas({&cta});
  emulator::release(cta, emulator::State::kSyncthreads);
}

void cluster_sync() {
  size_t arrived = 0, lanes = 0;
  ++current->cta->at_cluster_sync;
  for (auto &cta : emulator::cluster) arrived += cta->at_cluster_sync, lanes += cta->lanes.size();
  if (arrived < lanes) return emulator::suspend(emulator::State::kClusterSync);
  std::vector<emulator::Cta *> ctas;
  for (auto &cta : emulator::cluster) ctas.push_back(cta.get());
  emulator::meet_ctas(ctas);
  for (auto &cta : emulator::cluster) {
    cta->at_cluster_sync = 0;
    ++cta->cluster_epoch;
    emulator::release(*cta, emulator::State::kClusterSync);
  }
}

float load_shared_cluster(const void *pointer, int rank) {
  emulator::Cta &other = *emulator::cluster[rank];
  const ptrdiff_t at = static_cast<const char *>(pointer) - current->cta->shared;
  const emulator::Word *word = emulator::words_of(other, other.shared + at, 4, "cluster read");
  if (!word) return 0;
  if (other.done) emulator::report("shared memory of a block that has ended is read");
  if (word->agent < 0 || word->cluster_epoch >= current->cta->cluster_epoch)
    emulator::report("a cluster read that no cluster barrier orders after its write");
  float value;
  memcpy(&value, other.shared + at, 4);
  return value;
}

void griddep_wait() { current->waited = true; }

void wgmma_fence() { current->wgmmas.fenced = ++emulator::clock_ticks; }
void wgmma_commit() {
  current->wgmmas.groups.push_back(std::move(current->wgmmas.open));
  current->wgmmas.open.clear();
}
void fence_proxy_async() { current->wgmmas.proxy_fenced = ++emulator::clock_ticks; }

int cluster_rank() { return current->cta->rank; }

void mbarrier_init(Mbarrier *barrier, int arrivals) {
  emulator::Cta &cta = *current->cta;
  emulator::note_write(cta, barrier, 8, current->warp());
  auto phase = std::make_shared<emulator::Phase>();
  phase->count = phase->pending = arrivals;
  phase->agent = emulator::first_agent(cta) + emulator::warps_of(cta) + static_cast<int>(cta.phases.size());
  phase->initializer = current->index, phase->initialized = ++emulator::clock_ticks;
  phase->seen = emulator::Clock(emulator::clock_of(*current).size(), 0);
  if (cta.phases.size() == emulator::kBarriers) return emulator::report("more barriers than the emulator keeps");
  cta.phases[emulator::offset_of(barrier)] = std::move(phase);
}
void fence_mbarrier_init() { fence_proxy_async(); }
void mbarrier_arrive_expect_tx(Mbarrier *barrier, int bytes) {
  emulator::Phase *const phase = emulator::phase_of(*current->cta, emulator::offset_of(barrier));
  if (phase) phase->bytes += bytes, emulator::arrive(*current->cta, emulator::offset_of(barrier));
}
void mbarrier_arrive_cluster(Mbarrier *barrier, int rank) {
  emulator::arrive(*emulator::cluster[rank], emulator::offset_of(barrier));
}
void mbarrier_wait(Mbarrier *barrier, int parity) {
  emulator::note_read(*current->cta, barrier, 8, current->warp());
  emulator::Phase *const phase = emulator::phase_of(*current->cta, emulator::offset_of(barrier));
  while (phase && (phase->phase & 1) == static_cast<uint32_t>(parity)) emulator::suspend(emulator::State::kMbarrier);
  if (phase && phase->phase) emulator::join(emulator::clock_of(*current), phase->completed);
}
void tma_load_multicast(char *to, const TensorMap &map, int column, int row, Mbarrier *barrier, int ctas) {
  const ptrdiff_t at = emulator::offset_of(to);
  if (at % 1024) emulator::report("a copy with the 128-byte swizzle to no multiple of 1024 bytes");
  if (reinterpret_cast<uintptr_t>(map.base) % 16 || map.stride % 16 || map.box > 256)
    emulator::report("a tensor map that cannot be encoded");
  std::vector<char> bytes(map.box * 128, 0);
  for (int i = 0; i < map.box && row + i < map.rows; ++i) {
    const int64_t width = map.columns - column < 128 ? map.columns - column : 128;
    const char *const from = map.base + (row + i) * map.stride + column;
    emulator::global_range(from, width);
    if (!emulator::fault().empty()) return;
    for (int64_t j = 0; j < width; ++j) bytes[(i * 128 + j) ^ (i & 7) << 4] = from[j];
  }
  for (int rank = 0; rank < static_cast<int>(emulator::cluster.size()); ++rank)
    if (ctas >> rank & 1) emulator::start_tma_copy(*emulator::cluster[rank], at, emulator::offset_of(barrier), bytes);
}
void emulator::copy_to_cta(int rank, char *to, const void *from, int bytes, Mbarrier *barrier) {
  const ptrdiff_t at = emulator::offset_of(to);
  if ((reinterpret_cast<uintptr_t>(from) | at | bytes) % 16) emulator::report("a bulk copy that is not of 16 bytes");
  emulator::global_range(from, bytes);
  if (!emulator::fault().empty()) return;
  const char *const source = static_cast<const char *>(from);
  emulator::start_tma_copy(*cluster[rank], at, emulator::offset_of(barrier), std::vector<char>(source, source + bytes));
}

void cp_async_commit() {
  current->groups.push_back(std::move(current->open));
  current->open.clear();
}

void cp_async_wait(int pending) {
  while (static_cast<int>(current->groups.size()) > pending) {
    emulator::finish(*current, current->groups.front());
    current->groups.pop_front();
  }
}

}  // namespace vqp
