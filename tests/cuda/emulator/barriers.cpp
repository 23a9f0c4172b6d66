/* Barriers of a CTA and of a cluster, and reads of distributed shared memory. */
#include "state.h"

namespace vqp {
namespace emulator {
namespace {

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



}  // namespace emulator

using emulator::current;

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
  if (other.done) emulator::report("shared memory of a CTA that has ended is read");
  if (word->agent < 0 || word->cluster_epoch >= current->cta->cluster_epoch)
    emulator::report("a cluster read that no cluster barrier orders after its write");
  float value;
  memcpy(&value, other.shared + at, 4);
  return value;
}

}  // namespace vqp
