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

struct Transfer { /* one copy into one block */
  Group *block;
  ptrdiff_t barrier, to;
  std::vector<char> bytes;
};
std::vector<Transfer> transfers;

Phase *phase_of(Group &block, ptrdiff_t at) {
  const auto found = block.phases.find(at);
  if (found != block.phases.end()) return found->second.get();
  report("an instruction on a barrier that was not initialized");
  return nullptr;
}
ptrdiff_t place_of(const void *pointer) { return static_cast<const char *>(pointer) - current->block->shared; }

void end_phase_if_complete(Phase &p) {
  if (p.pending || p.bytes) return;
  p.pending = p.count;
  ++p.phase;
  p.seen[p.agent] = p.phase; /* its copies */
  p.completed = p.seen;
  for (auto &block : cluster) release(*block, State::kMbarrier);
}

void arrive(Group &block, ptrdiff_t at) {
  Phase *const p = phase_of(block, at);
  if (!p) return;
  if (block.done == static_cast<int>(block.lanes.size())) report("an arrival at a block that has ended");
  /* The initialization must have been seen. */
  note_read(block, block.shared + at, 8, current->warp(), clock_of(*current));
  join(p->seen, clock_of(*current));
  ++clock_of(*current)[agent_of(*current)];
  if (--p->pending < 0) return report("more arrivals than the barrier expects");
  end_phase_if_complete(*p);
}

void land(Transfer &t) {
  Phase *const p = phase_of(*t.block, t.barrier);
  if (!p) return;
  const int64_t bytes = static_cast<int64_t>(t.bytes.size());
  memcpy(t.block->shared + t.to, t.bytes.data(), bytes);
  for (int64_t i = 0; i < bytes / 4; ++i) --t.block->words[t.to / 4 + i].in_flight;
  p->bytes -= bytes;
  end_phase_if_complete(*p);
}

/* A copy that nobody can go on without. */
bool land_some() {
  if (transfers.empty()) return false;
  const size_t which = random_order() % transfers.size();
  std::swap(transfers[which], transfers.back());
  Transfer t = std::move(transfers.back());
  transfers.pop_back();
  land(t);
  return true;
}

/* Its writes are those of the barrier's agent in the coming phase; whoever issues it must have seen every access to
 * what it overwrites. */
void start_transfer(Group &block, ptrdiff_t to, ptrdiff_t barrier, std::vector<char> bytes) {
  Phase *const p = phase_of(block, barrier);
  if (!p) return;
  if (block.done == static_cast<int>(block.lanes.size())) report("a copy into a block that has ended");
  if (block.lanes[p->initializer].products.proxy_fenced < p->initialized)
    report("a copy on a barrier that no fence made visible to it");
  note_read(block, block.shared + barrier, 8, current->warp(), clock_of(*current));
  for (size_t i = 0; i < bytes.size() && first_fault.empty(); i += 4) {
    Word *const word = words_of(block, block.shared + to + i, 4, "copy");
    if (!word) return;
    check_write(block, *word, current->warp(), clock_of(*current), &block != current->block);
    word->agent = p->agent, word->time = p->phase + 1, word->writer = -1;
    word->cluster_epoch = block.cluster_epoch;
    ++word->in_flight;
  }
  transfers.push_back({&block, barrier, to, std::move(bytes)});
  if (options.late_copies) return;
  Transfer now = std::move(transfers.back());
  transfers.pop_back();
  land(now);
}
