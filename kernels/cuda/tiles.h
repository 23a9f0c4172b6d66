/* The tile shapes that the GEMM kernels have in common, and the ranges of split-K. */
#ifndef VQP_CUDA_TILES_H
#define VQP_CUDA_TILES_H

#include "host_device.h"

namespace vqp {

constexpr int kThreads = 256;
constexpr int kWarpsN = 4, kWarpsK = 2;
constexpr int kTileN = 128, kTileK = 128;
constexpr int kMaxSplits = 8;
constexpr int kMaxGrid = 65535; /* CTAs along y and z */

/* The accumulators of a CTA meet in shared memory as [token][kSumStride] 32-bit words. The stride makes the stores of
 * fragments free of bank conflicts. */
constexpr int kSumStride = kTileN + 4;
VQP_HD constexpr int sum_tile_bytes(int tokens) { return tokens * kSumStride * 4; }

/* The K tiles of split `split`, half-open. The sizes of the splits differ by at most one. */
struct Range {
  int begin, end;
};
VQP_HD Range split_range(int k_tiles, int splits, int split) {
  return {static_cast<int>(static_cast<int64_t>(k_tiles) * split / splits),
          static_cast<int>(static_cast<int64_t>(k_tiles) * (split + 1) / splits)};
}

}  // namespace vqp

#endif
