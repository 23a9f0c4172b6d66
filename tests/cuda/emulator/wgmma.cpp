/* wgmma: its results, and what its asynchronous reads and writes forbid until it is waited for. The place of each
 * operand element in shared memory follows PTX's rules for the descriptor, independently of the code that fills it. */
#include "fragments.h"
#include "state.h"

namespace vqp {
namespace emulator {
namespace {

/* Byte of element (token, k) of B: K-major, 128-byte swizzle. */
uint32_t offset_of_b(uint64_t descriptor, int token, int k) {
  const uint32_t start = (descriptor & 0x3FFF) << 4, atom = (descriptor >> 32 & 0x3FFF) << 4;
  const uint32_t at = start + token / 8 * atom + token % 8 * 128 + 2 * k;
  return at ^ (at >> 7 & 7) << 4;
}

void check_fences(WgmmaState &own, const float *c) {
  if (own.fenced == 0) report("a wgmma before any wgmma fence");
  const auto completed = own.completed.find(c);
  if (completed != own.completed.end() && own.fenced < completed->second && !own.pending(c))
    report("accumulators were released and no wgmma fence came before their next wgmma");
}
void check_registers(Lane &lane, const WgmmaRsOperands &o) {
  WgmmaState &own = lane.wgmmas;
  if (memcmp(o.a, own.last_a, 16) && own.fenced < own.issued) report("registers of A changed without a wgmma fence");
  check_fences(own, o.c);
}

/* The words that a wgmma reads must be visible to the async proxy and must not change while it runs. */
void note_wgmma_read(Cta &cta, const char *pointer, int warp) {
  note_read(cta, pointer, 4, warp);
  const Word *word = words_of(cta, pointer, 4, "wgmma read");
  if (word && word->writer >= 0 && cta.lanes[word->writer].wgmmas.proxy_fenced < word->write_time)
    report("wgmma reads what no proxy fence of its writer made visible");
}

void finish_wgmma(Lane &lane, const PendingWgmma &pending_wgmma, bool last) {
  WgmmaState &own = lane.wgmmas;
  if (pending_wgmma.a && memcmp(pending_wgmma.a, pending_wgmma.a_then, 16)) report("registers of A changed while a wgmma reads them");
  for (size_t i = 0; i < pending_wgmma.result.size(); ++i) {
    uint32_t bits;
    memcpy(&bits, &pending_wgmma.c[i], 4);
    float expected = pending_wgmma.result[i];
    if (options.late_copies) memcpy(&expected, &kPoison, 4);
    if ((options.late_copies || last) && memcmp(&bits, &expected, 4)) return report("accumulators changed while a wgmma runs");
  }
  if (last) memcpy(pending_wgmma.c, pending_wgmma.result.data(), 4 * pending_wgmma.result.size());
  own.completed[pending_wgmma.c] = ++clock_ticks;
  if (lane.index % 32) return;
  for (const auto &[at, then] : pending_wgmma.input->words) {
    note_wgmma_read(*lane.cta, at, lane.warp());
    if (memcmp(at, &then, 4)) report("shared memory changed while a wgmma reads it");
  }
}

void wait_wgmmas(Lane &lane, int pending) {
  WgmmaState &own = lane.wgmmas;
  while (static_cast<int>(own.groups.size()) > pending && !faulty()) {
    const std::vector<PendingWgmma> done = std::move(own.groups.front());
    own.groups.pop_front();
    for (size_t i = 0; i < done.size(); ++i) {
      bool last = !own.pending(done[i].c);
      for (size_t j = i + 1; j < done.size(); ++j) last = last && done[j].c != done[i].c;
      finish_wgmma(lane, done[i], last);
    }
  }
}

/* The codes of `rows` rows behind a descriptor, 32 columns each; noted as read, and to be the same when the product
 * ends. */
void read_codes(Cta &cta, uint64_t descriptor, int first_row, int rows, int warp, WgmmaInput &input,
                std::vector<uint8_t> &codes) {
  codes.resize(rows * 32);
  for (int row = 0; row < rows; ++row)
    for (int k = 0; k < 32 && !faulty(); k += 4) {
      const char *at = cta.shared + offset_of_b(descriptor, first_row + row, k / 2);
      note_wgmma_read(cta, at, warp);
      uint32_t word;
      memcpy(&word, at, 4);
      input.words.push_back({at, word});
      memcpy(&codes[row * 32 + k], &word, 4);
    }
}

template <class Sum, class Decode>
std::vector<Sum> decoded(const std::vector<uint8_t> &codes, Decode decode) {
  std::vector<Sum> values(codes.size());
  for (size_t i = 0; i < codes.size(); ++i) values[i] = decode(codes[i]);
  return values;
}

template <class Sum, class Decode>
void issue_wgmma_ss(Lane *lanes, Decode decode) {
  Cta &cta = *lanes[0].cta;
  const int warp = lanes[0].warp();
  const WgmmaSsOperands first = *static_cast<const WgmmaSsOperands *>(lanes[0].operands);
  auto input = std::make_shared<WgmmaInput>();
  std::vector<uint8_t> a_codes, b_codes;
  read_codes(cta, first.a, warp % 4 * 16, 16, warp, *input, a_codes);
  read_codes(cta, first.b, 0, 8 * first.tiles, warp, *input, b_codes);
  if (faulty()) return;
  const std::vector<Sum> a = decoded<Sum>(a_codes, decode), b = decoded<Sum>(b_codes, decode);
  for (int lane = 0; lane < 32; ++lane) {
    const auto *o = static_cast<const WgmmaSsOperands *>(lanes[lane].operands);
    if (o->a != first.a || o->b != first.b || o->accumulate != first.accumulate || o->tiles != first.tiles)
      return report("lanes of a warp disagree on a wgmma");
    WgmmaState &own = lanes[lane].wgmmas;
    check_fences(own, o->c);
    const PendingWgmma *before = own.pending(o->c);
    PendingWgmma pending_wgmma = {o->c, nullptr, {}, {}, input};
    pending_wgmma.result.resize(4 * o->tiles);
    for (int i = 0; i < 4 * o->tiles; ++i) {
      const Sum *const row = &a[c_row(lane, i % 4) * 32], *const column = &b[(i / 4 * 8 + c_col(lane, i % 4)) * 32];
      Sum sum = 0, earlier = 0;
      for (int k = 0; k < 32; ++k) sum += row[k] * column[k];
      if (o->accumulate) memcpy(&earlier, before ? &before->result[i] : &o->c[i], 4);
      sum += earlier;
      memcpy(&pending_wgmma.result[i], &sum, 4);
    }
    for (int i = 0; i < 4 * o->tiles; ++i) memcpy(&o->c[i], options.late_copies ? &kPoison : reinterpret_cast<const uint32_t *>(&pending_wgmma.result[i]), 4);
    own.open.push_back(std::move(pending_wgmma));
    own.issued = ++clock_ticks;
    ++own.count;
  }
}

}  // namespace

void run_wgmma_rs(Lane *lanes) {
  Cta &cta = *lanes[0].cta;
  const int warp = lanes[0].warp();
  const WgmmaRsOperands first = *static_cast<const WgmmaRsOperands *>(lanes[0].operands);
  if (first.b >> 62 != 1) return report("a descriptor without the 128-byte swizzle");
  if ((first.b & 0x3FFF) << 4 & 0x380) return report("a descriptor that does not begin at a row of the swizzle");
  auto &history = cta.descriptors[warp / 4];
  const size_t index = lanes[0].wgmmas.count;
  if (index == history.size()) history.push_back({0, first.b});
  if (history[index].second != first.b) return report("warps of a warpgroup disagree on a wgmma");

  const int tokens = 8 * first.tiles;
  auto input = std::make_shared<WgmmaInput>();
  std::vector<float> b(tokens * 16);
  const float *value = float_values(first.half);
  for (int token = 0; token < tokens; ++token)
    for (int k = 0; k < 16; k += 2) {
      const char *at = cta.shared + offset_of_b(first.b, token, k);
      note_wgmma_read(cta, at, warp);
      if (faulty()) return;
      uint32_t pair;
      memcpy(&pair, at, 4);
      input->words.push_back({at, pair});
      b[token * 16 + k] = value[pair & 0xFFFF], b[token * 16 + k + 1] = value[pair >> 16];
    }
  float a[16][16];
  for (int lane = 0; lane < 32; ++lane) {
    const auto *o = static_cast<const WgmmaRsOperands *>(lanes[lane].operands);
    if (o->b != first.b || o->accumulate != first.accumulate || o->tiles != first.tiles)
      return report("lanes of a warp disagree on a wgmma");
    check_registers(lanes[lane], *o);
    for (int r = 0; r < 4; ++r)
      for (int h = 0; h < 2; ++h) a[a_row(lane, r)][a_col(lane, r, h)] = value[o->a[r] >> 16 * h & 0xFFFF];
  }
  for (int lane = 0; lane < 32; ++lane) {
    const auto *o = static_cast<const WgmmaRsOperands *>(lanes[lane].operands);
    WgmmaState &own = lanes[lane].wgmmas;
    const PendingWgmma *before = own.pending(o->c);
    PendingWgmma pending_wgmma = {o->c, o->a, {}, {}, input};
    memcpy(pending_wgmma.a_then, o->a, 16);
    memcpy(own.last_a, o->a, 16);
    pending_wgmma.result.assign(4 * o->tiles, 0);
    for (int i = 0; i < 4 * o->tiles; ++i) {
      float sum = 0;
      for (int k = 0; k < 16; ++k) sum += a[c_row(lane, i % 4)][k] * b[(i / 4 * 8 + c_col(lane, i % 4)) * 16 + k];
      if (o->accumulate) sum += before ? before->result[i] : o->c[i];
      pending_wgmma.result[i] = sum;
    }
    for (int i = 0; i < 4 * o->tiles; ++i)
      if (options.late_copies)
        memcpy(&o->c[i], &kPoison, 4);
      else
        o->c[i] = pending_wgmma.result[i];
    own.open.push_back(std::move(pending_wgmma));
    own.issued = ++clock_ticks;
    ++own.count;
  }
}

void run_wgmma_ss(Lane *lanes) {
  const WgmmaSsOperands first = *static_cast<const WgmmaSsOperands *>(lanes[0].operands);
  if (first.a >> 62 != 1 || first.b >> 62 != 1) return report("a descriptor without the 128-byte swizzle");
  if ((first.a & 0x38) || (first.b & 0x38)) return report("a descriptor that does not begin at a row of the swizzle");
  auto &history = lanes[0].cta->descriptors[lanes[0].warp() / 4];
  const size_t index = lanes[0].wgmmas.count;
  if (index == history.size()) history.push_back({first.a, first.b});
  if (history[index] != std::make_pair(first.a, first.b)) return report("warps of a warpgroup disagree on a wgmma");
  if (first.integer)
    issue_wgmma_ss<int32_t>(lanes, [](uint8_t code) { return static_cast<int8_t>(code); });
  else
    issue_wgmma_ss<float>(lanes, e4m3_of);
}

void wgmma_wait(int pending) { wait_wgmmas(*current, pending); }

}  // namespace emulator

using emulator::current;

void wgmma_fence() { current->wgmmas.fenced = ++emulator::clock_ticks; }
void wgmma_commit() {
  current->wgmmas.groups.push_back(std::move(current->wgmmas.open));
  current->wgmmas.open.clear();
}
void fence_proxy_async() { current->wgmmas.proxy_fenced = ++emulator::clock_ticks; }

}  // namespace vqp
