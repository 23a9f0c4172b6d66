/* Runs the threads of a grid, one fiber each, the CTAs of a cluster together. */
#include "state.h"

namespace vqp {
namespace emulator {

Options options;
std::mt19937_64 random_order;
bool dependent_launch;
uint64_t clock_ticks = 0;
std::vector<std::unique_ptr<Cta>> cluster;
Lane *current;

namespace {

constexpr size_t kStack = 64 << 10;
std::string first_fault;
const std::function<void()> *body;
ucontext_t scheduler;

}  // namespace

void report(const std::string &what) {
  if (!first_fault.empty()) return;
  const Cta &b = *current->cta;
  first_fault = what + " (CTA " + std::to_string(b.at.x) + "," + std::to_string(b.at.y) + "," +
                std::to_string(b.at.z) + " thread " + std::to_string(current->index) + ")";
}

bool faulty() { return !first_fault.empty(); }
const std::string &fault() { return first_fault; }

void suspend(State why) {
  Lane *const self = current;
  self->state = why;
  swapcontext(&self->context, &scheduler);
}

void release(Cta &cta, State from) {
  for (Lane &lane : cta.lanes)
    if (lane.state == from) lane.state = State::kReady;
}

namespace {

void enter() {
  (*body)();
  Lane *const self = current;
  if (!self->groups.empty() || !self->open.empty()) report("a thread ended with copies in flight");
  if (!self->wgmmas.groups.empty() || !self->wgmmas.open.empty()) report("a thread ended with wgmmas in flight");
  if (dependent_launch && !self->waited) report("a thread ended without waiting for the preceding kernel");
  self->state = State::kDone;
  ++self->cta->done;
  swapcontext(&self->context, &scheduler);
}

/* Run one warp as far as possible, then another at random: the worst order that the barriers allow. */
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
      if (!tma_copies.empty()) report("a CTA ended with copies in flight");
      for (auto &cta : cluster)
        for (const auto &[at, phase] : cta->phases)
          if (phase->bytes) report("a CTA ended with a barrier that expects bytes");
      return;
    }
    if (ready.empty() && first_fault.empty() && land_any_copy()) continue;
    if (ready.empty()) {
      if (first_fault.empty()) first_fault = "deadlock: no thread can continue";
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

}  // namespace

void reset(const Options &chosen) {
  options = chosen;
  random_order.seed(chosen.seed);
  forget_memory();
  first_fault.clear();
}

void launch(Dim grid, int threads, size_t shared_bytes, int cluster_size, const std::function<void()> &kernel,
            bool dependent) {
  body = &kernel;
  dependent_launch = dependent;
  tma_copies.clear();
  forget_stores();
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
void griddep_wait() { current->waited = true; }

}  // namespace vqp
