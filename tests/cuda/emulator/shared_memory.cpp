/* Checks accesses to shared memory: bounds, and races between warps and between the lanes of one; cp.async. */
#include "state.h"

namespace vqp {
namespace emulator {

Word *words_of(Cta &cta, const void *pointer, size_t bytes, const char *what) {
  const ptrdiff_t at = static_cast<const char *>(pointer) - cta.shared;
  if (at < 0 || at + bytes > cta.shared_bytes || at % bytes) {
    report(std::string(what) + " at byte " + std::to_string(at) + " of " + std::to_string(cta.shared_bytes) +
           " of shared memory");
    return nullptr;
  }
  return &cta.words[at / 4];
}

static bool seen(const Clock &clock, int agent, uint32_t time) { return agent < 0 || time <= clock[agent]; }

/* Whether `warp` (of another CTA if `foreign`) may write a word. */
void check_write(Cta &cta, const Word &w, int warp, const Clock &clock, bool foreign) {
  if (w.in_flight) report("write to shared memory that a copy is filling");
  if (!seen(clock, w.agent, w.time)) report("two warps write a word between barriers");
  const int warps = warps_of(cta);
  const uint32_t *const reads = &cta.reads[(&w - cta.words.data()) * warps];
  for (int i = 0; i < warps; ++i)
    if ((foreign || i != warp) && !seen(clock, first_agent(cta) + i, reads[i]))
      report("a word is written while another warp may read it");
}

/* Whether another lane of this warp wrote the whole word, and neither a barrier nor __syncwarp came since. */
static bool of_another_lane(const Cta &cta, const Word &w, int warp) {
  const int agent = first_agent(cta) + warp;
  return w.lane >= 0 && w.lane != current->index && w.agent == agent && w.time == cta.clocks[warp][agent] &&
         w.syncwarps == cta.syncwarps[warp] && &cta == current->cta;
}

void note_write(Cta &cta, void *pointer, size_t bytes, int warp) {
  Word *word = words_of(cta, pointer, bytes, "write");
  const int agent = first_agent(cta) + warp;
  for (size_t i = 0; word && i < (bytes + 3) / 4; ++i) {
    Word &w = word[i];
    check_write(cta, w, warp, cta.clocks[warp], false);
    if (bytes >= 4 && of_another_lane(cta, w, warp)) report("two lanes write a word without __syncwarp between them");
    w.lane = bytes >= 4 ? current->index : -1, w.syncwarps = cta.syncwarps[warp];
    w.agent = agent, w.time = cta.clocks[warp][agent], w.cluster_epoch = cta.cluster_epoch;
    w.writer = current->index, w.write_time = ++clock_ticks;
  }
}

/* `clock`: of the reader, which is warp `warp` of this CTA or, at its barriers, of another. */
void note_read(Cta &cta, const void *pointer, size_t bytes, int warp, const Clock &clock) {
  Word *word = words_of(cta, pointer, bytes, "read");
  const int agent = first_agent(cta) + warp;
  const bool own = &clock == &cta.clocks[warp];
  for (size_t i = 0; word && i < (bytes + 3) / 4; ++i) {
    Word &w = word[i];
    if (w.in_flight) report("read of shared memory that a copy is filling");
    if (w.agent == -1) report("read of shared memory that nothing wrote");
    if (!seen(clock, w.agent, w.time)) report("a word is read before a barrier shows its write");
    if (own && of_another_lane(cta, w, warp)) report("a lane reads another's write without __syncwarp between them");
    if (own) cta.reads[(&w - cta.words.data()) * warps_of(cta) + warp] = clock[agent];
  }
}
void note_read(Cta &cta, const void *pointer, size_t bytes, int warp) {
  note_read(cta, pointer, bytes, warp, cta.clocks[warp]);
}

void shared_access(const void *pointer, size_t bytes, bool write) {
  if (write)
    note_write(*current->cta, const_cast<void *>(pointer), bytes, current->warp());
  else
    note_read(*current->cta, pointer, bytes, current->warp());
}

uint32_t shared_offset(const void *pointer) {
  return static_cast<uint32_t>(static_cast<const char *>(pointer) - current->cta->shared);
}

static void land(const CpAsync &copy) {
  if (faulty()) return;
  if (copy.valid)
    memcpy(copy.to, copy.from, 16);
  else
    memset(copy.to, 0, 16);
}

/* The effect of a copy may become visible at any time between issue and wait: it is a write at both ends. */
void finish(Lane &lane, std::vector<CpAsync> &copies) {
  for (const CpAsync &copy : copies) {
    Word *word = words_of(*lane.cta, copy.to, 16, "copy");
    for (int i = 0; word && i < 4; ++i) --word[i].in_flight;
    if (options.late_copies) land(copy);
    note_write(*lane.cta, copy.to, 16, lane.warp());
  }
}

void cp_async_16(void *to, const void *from, bool valid) {
  if (valid) global_access(from, 16);
  note_write(*current->cta, to, 16, current->warp());
  if (faulty()) return;
  Word *word = words_of(*current->cta, to, 16, "copy");
  for (int i = 0; word && i < 4; ++i) ++word[i].in_flight;
  current->open.push_back({to, from, valid});
  if (!options.late_copies) land(current->open.back());
}

}  // namespace emulator

using emulator::current;

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
