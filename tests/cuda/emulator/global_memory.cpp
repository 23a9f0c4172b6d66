/* Checks accesses to global memory: bounds, stores of two threads, what the preceding kernel may still write. */
#include "state.h"

namespace vqp {
namespace emulator {
namespace {

struct Memory {
  size_t bytes;
  bool constant;
};
std::map<uintptr_t, Memory> allowed;
std::unordered_map<const void *, int> stores;

}  // namespace

void forget_memory() { allowed.clear(); }
void forget_stores() { stores.clear(); }

void allow(const void *pointer, size_t bytes, bool constant) {
  if (pointer) allowed[reinterpret_cast<uintptr_t>(pointer)] = {bytes, constant};
}

void global_access(const void *pointer, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(pointer) % bytes)
    report("global access of " + std::to_string(bytes) + " bytes outside every tensor");
  global_range(pointer, bytes);
}

/* The thread number in the grid: an address that one thread stores to, no other may store to or load from. */
static int thread_of_grid() {
  const Cta &b = *current->cta;
  return ((b.at.z * b.grid.y + b.at.y) * b.grid.x + b.at.x) * static_cast<int>(b.lanes.size()) + current->index;
}
void global_load(const void *pointer, size_t bytes, bool read_only) {
  global_access(pointer, bytes);
  const auto stored = stores.find(pointer);
  if (stored != stores.end() && stored->second != thread_of_grid()) report("what another thread stored is loaded");
  const auto memory = allowed.upper_bound(reinterpret_cast<uintptr_t>(pointer));
  if (read_only && dependent_launch && memory != allowed.begin() && !std::prev(memory)->second.constant)
    report("memory of the preceding kernel is read through the read-only path");
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
    report("memory of the preceding kernel is touched before the wait for it");
}

}  // namespace emulator
}  // namespace vqp
