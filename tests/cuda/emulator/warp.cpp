/* What a whole warp executes at once: ldmatrix, mma and shuffles. */
#include "fragments.h"
#include "numeric8.h"
#include "state.h"

namespace vqp {
namespace emulator {
namespace {

void run_ldmatrix(Lane *lanes, int matrices) {
  uint32_t loaded[32][4];
  for (int m = 0; m < matrices; ++m)
    for (int lane = 0; lane < 32; ++lane) {
      const auto *from = static_cast<const LdmatrixOperands *>(lanes[8 * m + lane / 4].operands);
      const char *at = static_cast<const char *>(from->row);
      if (lane % 4 == 0) {
        if (reinterpret_cast<uintptr_t>(at) & 15) report("ldmatrix row is not 16-byte aligned");
        note_read(*lanes->cta, at, 16, lanes->warp());
      }
      if (!faulty()) memcpy(&loaded[lane][m], at + 4 * (lane % 4), 4);
    }
  for (int lane = 0; lane < 32; ++lane)
    memcpy(static_cast<const LdmatrixOperands *>(lanes[lane].operands)->r, loaded[lane], 4 * matrices);
}

void run_mma(Lane *lanes, bool half) {
  float a[16][16], b[16][8];
  const float *const value = float_values(half);
  for (int lane = 0; lane < 32; ++lane) {
    const auto *o = static_cast<const MmaOperands *>(lanes[lane].operands);
    for (int h = 0; h < 2; ++h) {
      for (int r = 0; r < 4; ++r) a[a_row(lane, r)][a_col(lane, r, h)] = value[o->a[r] >> 16 * h & 0xFFFF];
      for (int r = 0; r < 2; ++r) b[b_row(lane, r, h)][b_col(lane)] = value[o->b[r] >> 16 * h & 0xFFFF];
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    float *const c = static_cast<const MmaOperands *>(lanes[lane].operands)->c;
    for (int i = 0; i < 4; ++i) {
      float sum = 0;
      for (int k = 0; k < 16; ++k) sum += a[c_row(lane, i)][k] * b[k][c_col(lane, i)];
      c[i] += sum;
    }
  }
}

template <class Operands, class Value, class Decode>
void run_mma8(Lane *lanes, Decode decode) {
  Value a[16][32], b[32][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto *o = static_cast<const Operands *>(lanes[lane].operands);
    for (int i = 0; i < 4; ++i) {
      for (int r = 0; r < 4; ++r) a[a_row(lane, r)][a8_col(lane, r, i)] = decode(o->a[r] >> 8 * i & 0xFF);
      for (int r = 0; r < 2; ++r) b[b8_row(lane, r, i)][b_col(lane)] = decode(o->b[r] >> 8 * i & 0xFF);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    auto *const c = static_cast<const Operands *>(lanes[lane].operands)->c;
    for (int i = 0; i < 4; ++i) {
      Value sum = 0;
      for (int k = 0; k < 32; ++k) sum += a[c_row(lane, i)][k] * b[k][c_col(lane, i)];
      c[i] += sum;
    }
  }
}

void run_shuffle(Lane *lanes) {
  for (int lane = 0; lane < 32; ++lane) {
    auto *const o = static_cast<ShuffleOperands *>(lanes[lane].operands);
    o->result = static_cast<const ShuffleOperands *>(lanes[lane ^ o->mask].operands)->value;
  }
}

}  // namespace

const float *float_values(bool half) {
  static std::vector<float> values[2];
  if (values[half].empty()) {
    values[half].resize(1 << 16);
    for (uint32_t i = 0; i < 1 << 16; ++i)
      values[half][i] = static_cast<float>(half ? emulated_value<Half>(i) : emulated_value<BFloat16>(i));
  }
  return values[half].data();
}

float e4m3_of(uint32_t code) {
  static std::vector<float> values;
  for (uint32_t i = static_cast<uint32_t>(values.size()); i < 256; ++i) values.push_back(e4m3_value(i));
  return values[code];
}

void warp_instruction(Warp which, void *operands) {
  Lane *const self = current;
  self->instruction = which, self->operands = operands;
  Lane *const lanes = &self->cta->lanes[self->warp() * 32];
  for (int i = 0; i < 32; ++i)
    if (lanes[i].state != State::kWarp && &lanes[i] != self) {
      suspend(State::kWarp);
      return;
    }
  for (int i = 0; i < 32; ++i)
    if (lanes[i].instruction != which) report("lanes of a warp meet in different instructions");
  if (!faulty()) switch (which) {
      case Warp::kLdmatrix2: run_ldmatrix(lanes, 2); break;
      case Warp::kLdmatrix4: run_ldmatrix(lanes, 4); break;
      case Warp::kMmaHalf: run_mma(lanes, true); break;
      case Warp::kMmaBFloat16: run_mma(lanes, false); break;
      case Warp::kWgmmaRs: run_wgmma_rs(lanes); break;
      case Warp::kWgmmaSs: run_wgmma_ss(lanes); break;
      case Warp::kMmaInt8:
        run_mma8<MmaInt8Operands, int32_t>(lanes, [](uint32_t code) { return static_cast<int8_t>(code); });
        break;
      case Warp::kMmaE4m3: run_mma8<MmaOperands, float>(lanes, e4m3_of); break;
      case Warp::kShuffle: run_shuffle(lanes); break;
      case Warp::kSyncwarp: ++self->cta->syncwarps[self->warp()]; break;
    }
  for (int i = 0; i < 32; ++i)
    if (&lanes[i] != self) lanes[i].state = State::kReady;
}

}  // namespace emulator
}  // namespace vqp
