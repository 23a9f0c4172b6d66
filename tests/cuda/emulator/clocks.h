/* Whose accesses to shared memory are visible to whom: vector clocks over the warps of a cluster and the mbarriers that
 * copies complete on.
 *
 * An access is stamped with the time of its agent. A barrier of a CTA or cluster, or an arrival and a wait at an
 * mbarrier, pass on all that one warp has seen to another. Two accesses of which neither has been seen by the agent of
 * the other are a race, in whatever order they happened to run.
 */
#ifndef VQP_EMULATOR_CLOCKS_H
#define VQP_EMULATOR_CLOCKS_H

#include <stdint.h>

#include <vector>

namespace vqp {
namespace emulator {

typedef std::vector<uint32_t> Clock; /* by agent */

inline void join(Clock &into, const Clock &seen) {
  for (size_t i = 0; i < into.size(); ++i)
    if (seen[i] > into[i]) into[i] = seen[i];
}

/* All of these warps meet: each has seen all, and what it does next is new. */
inline void meet(const std::vector<Clock *> &clocks, const std::vector<int> &agents) {
  Clock all = *clocks[0];
  for (const Clock *clock : clocks) join(all, *clock);
  for (size_t i = 0; i < clocks.size(); ++i) *clocks[i] = all, ++(*clocks[i])[agents[i]];
}

}  // namespace emulator
}  // namespace vqp

#endif
