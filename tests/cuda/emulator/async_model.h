/* How emulator.cpp runs barriers in shared memory and the copies that complete on them: included there, behind what
 * it needs. */

/* A barrier's agent stands for the copies that it counts, its time for the phase. */
struct Phase {
  int count = 0, pending = 0, agent = 0, initializer = 0;
  int64_t bytes = 0;
  uint32_t phase = 0;
  uint64_t initialized = 0;
  Clock seen, completed;
};

struct TmaCopy { /* one copy into one block */
  Cta *cta;
  ptrdiff_t barrier, to;
  std::vector<char> bytes;
};
std::vector<TmaCopy> tma_copies;

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
  if (cta.done == static_cast<int>(cta.lanes.size())) report("an arrival at a block that has ended");
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

/* A copy that nobody can go on without. */
bool land_any_copy() {
  if (tma_copies.empty()) return false;
  const size_t which = random_order() % tma_copies.size();
  std::swap(tma_copies[which], tma_copies.back());
  TmaCopy t = std::move(tma_copies.back());
  tma_copies.pop_back();
  land(t);
  return true;
}

/* Its writes are those of the barrier's agent in the coming phase; whoever issues it must have seen every access to
 * what it overwrites. */
void start_tma_copy(Cta &cta, ptrdiff_t to, ptrdiff_t barrier, std::vector<char> bytes) {
  Phase *const p = phase_of(cta, barrier);
  if (!p) return;
  if (cta.done == static_cast<int>(cta.lanes.size())) report("a copy into a block that has ended");
  if (cta.lanes[p->initializer].wgmmas.proxy_fenced < p->initialized)
    report("a copy on a barrier that no fence made visible to it");
  note_read(cta, cta.shared + barrier, 8, current->warp(), clock_of(*current));
  for (size_t i = 0; i < bytes.size() && first_fault.empty(); i += 4) {
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
