/* What the launch plans of all GEMMs know of a GPU: its limits, and the clocks of what they have in common. Figures
 * are published limits or counts of instructions; benchmarks/gpu_plans.py measures how good the plans are. Host code
 * only. */
#ifndef VQP_CUDA_COST_MODEL_H
#define VQP_CUDA_COST_MODEL_H

#include <math.h>

#include "tiles.h"

namespace vqp {

/* `clusters`: the kernels were compiled for sm_90 or newer; `warpgroups`: for sm_90a. */
struct Device {
  int sms, smem_per_cta, smem_per_sm, clusters, warpgroups;
};

constexpr int kReservedSmem = 1024;              /* bytes per CTA that the system takes */
constexpr double kMemoryBytesPerClock = 18.0;    /* per SM: the copy bandwidth of an H200 */
constexpr double kL2BytesPerClock = 50.0;        /* per SM, of what L2 already holds */
constexpr double kCtaClocks = 1500;              /* start and end of a CTA */
constexpr double kReductionLaunchClocks = 4000;  /* the second launch of split-K without clusters */

/* CTAs that fit on one SM by shared memory, at least 1 and at most `by_registers`. */
inline int resident_ctas(const Device &device, int smem_bytes, int by_registers) {
  const int by_smem = device.smem_per_sm / (smem_bytes + kReservedSmem);
  return by_smem < 1 ? 1 : by_smem < by_registers ? by_smem : by_registers;
}

/* Shared memory per CTA where two are to fit on an SM. */
inline int smem_of_two(const Device &device) { return device.smem_per_sm / 2 - kReservedSmem; }

/* The most stages of 8, 4 and 2 whose bytes(stages) fit in `room`; 2 if none does. */
template <class Bytes>
int most_stages(int room, Bytes bytes) {
  int stages = 8;
  while (stages > 2 && bytes(stages) > room) stages /= 2;
  return stages;
}

/* Clocks that split-K adds to `waves` waves of `ctas` CTAs: with clusters the exchange of accumulators, otherwise
 * writing them to the workspace and the launch that adds them. */
inline double split_k_clocks(const Device &device, int tokens, int splits, bool clustered, double ctas, double waves) {
  if (splits == 1) return 0;
  if (clustered) return waves * (700 + 6.0 * tokens);
  return kReductionLaunchClocks + 2.0 * ctas * sum_tile_bytes(tokens) / (kMemoryBytesPerClock * device.sms);
}

}  // namespace vqp

#endif
