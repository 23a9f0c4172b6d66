/* mbarriers in shared memory, and TMA loads that complete on them. */
#include "state.h"

namespace vqp {
namespace emulator {
namespace {

Phase *phase_of(Cta &cta, ptrdiff_t at) {
  const auto found = cta.phases.find(at);
  if (found != cta.phases.end()) return found->second.get();
  report("an instruction on a barrier that was not initialized");
  return nullptr;
}
ptrdiff_t offset_of(const void *pointer) { return static_cast<const char *>(pointer) - current->cta->shared; }

void end_phase_if_complete(Phase &p) {
  if (p.pending || p.bytes) return;
  p.pending = p.count;
  ++p.phase;
  p.seen[p.agent] = p.phase; /* its copies */
  p.completed = p.seen;
  for (auto &cta : cluster) release(*cta, State::kMbarrier);
}

void arrive(Cta &cta, ptrdiff_t at) {
  Phase *const p = phase_of(cta, at);
  if (!p) return;
  if (cta.done == static_cast<int>(cta.lanes.size())) report("an arrival at a CTA that has ended");
  /* The initialization must have been seen. */
  note_read(cta, cta.shared + at, 8, current->warp(), clock_of(*current));
  join(p->seen, clock_of(*current));
  ++clock_of(*current)[agent_of(*current)];
  if (--p->pending < 0) return report("more arrivals than the barrier expects");
  end_phase_if_complete(*p);
}

void land(TmaCopy &t) {
  Phase *const p = phase_of(*t.cta, t.barrier);
  if (!p) return;
  const int64_t bytes = static_cast<int64_t>(t.bytes.size());
  memcpy(t.cta->shared + t.to, t.bytes.data(), bytes);
  for (int64_t i = 0; i < bytes / 4; ++i) --t.cta->words[t.to / 4 + i].in_flight;
  p->bytes -= bytes;
  end_phase_if_complete(*p);
}

/* Its writes are those of the barrier's agent in the coming phase; whoever issues it must have seen every access to
 * what it overwrites. */
void start_tma_copy(Cta &cta, ptrdiff_t to, ptrdiff_t barrier, std::vector<char> bytes) {
  Phase *const p = phase_of(cta, barrier);
  if (!p) return;
  if (cta.done == static_cast<int>(cta.lanes.size())) report("a copy into a CTA that has ended");
  if (cta.lanes[p->initializer].wgmmas.proxy_fenced < p->initialized)
    report("a copy on a barrier that no fence made visible to it");
  note_read(cta, cta.shared + barrier, 8, current->warp(), clock_of(*current));
  for (size_t i = 0; i < bytes.size() && !faulty(); i += 4) {
    Word *const word = words_of(cta, cta.shared + to + i, 4, "copy");
    if (!word) return;
    check_write(cta, *word, current->warp(), clock_of(*current), &cta != current->cta);
    word->agent = p->agent, word->time = p->phase + 1, word->writer = -1;
    word->cluster_epoch = cta.cluster_epoch;
    ++word->in_flight;
  }
  tma_copies.push_back({&cta, barrier, to, std::move(bytes)});
  if (options.late_copies) return;
  TmaCopy now = std::move(tma_copies.back());
  tma_copies.pop_back();
  land(now);
}

}  // namespace

std::vector<TmaCopy> tma_copies;

/* Complete one copy at random, where no thread can continue without. */
bool land_any_copy() {
  if (tma_copies.empty()) return false;
  const size_t which = random_order() % tma_copies.size();
  std::swap(tma_copies[which], tma_copies.back());
  TmaCopy t = std::move(tma_copies.back());
  tma_copies.pop_back();
  land(t);
  return true;
}

void copy_to_cta(int rank, char *to, const void *from, int bytes, Mbarrier *barrier) {
  const ptrdiff_t at = offset_of(to);
  if ((reinterpret_cast<uintptr_t>(from) | at | bytes) % 16) report("a bulk copy that is not of 16 bytes");
  global_range(from, bytes);
  if (!fault().empty()) return;
  const char *const source = static_cast<const char *>(from);
  start_tma_copy(*cluster[rank], at, offset_of(barrier), std::vector<char>(source, source + bytes));
}

}  // namespace emulator

using emulator::current;

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

}  // namespace vqp
