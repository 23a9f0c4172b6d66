/* How emulator.cpp runs wgmma: included there, behind what it needs. The place of each element of B is read off the
 * descriptor by PTX's rules, independently of the code that fills shared memory. */

/* Byte of element (token, k) of B: K-major, 128-byte swizzle. */
inline uint32_t offset_of_b(uint64_t descriptor, int token, int k) {
  const uint32_t start = (descriptor & 0x3FFF) << 4, atom = (descriptor >> 32 & 0x3FFF) << 4;
  const uint32_t at = start + token / 8 * atom + token % 8 * 128 + 2 * k;
  return at ^ (at >> 7 & 7) << 4;
}

void check_fences(WgmmaState &own, const float *c) {
  if (own.fenced == 0) report("a product before any wgmma fence");
  const auto completed = own.completed.find(c);
  if (completed != own.completed.end() && own.fenced < completed->second && !own.pending(c))
    report("sums were handed back and no wgmma fence came before their next product");
}
void check_registers(Lane &lane, const WgmmaRsOperands &o) {
  WgmmaState &own = lane.wgmmas;
  if (memcmp(o.a, own.last_a, 16) && own.fenced < own.issued) report("registers of A changed without a wgmma fence");
  check_fences(own, o.c);
}

/* The words of B that a product reads: seen by the asynchronous proxy, and not changing while it runs. */
void note_wgmma_read(Cta &cta, const char *pointer, int warp) {
  note_read(cta, pointer, 4, warp);
  const Word *word = words_of(cta, pointer, 4, "product's read");
  if (word && word->writer >= 0 && cta.lanes[word->writer].wgmmas.proxy_fenced < word->write_time)
    report("wgmma reads what no proxy fence of its writer made visible");
}

void run_wgmma_rs(Lane *lanes) {
  Cta &cta = *lanes[0].cta;
  const int warp = lanes[0].warp();
  const WgmmaRsOperands first = *static_cast<const WgmmaRsOperands *>(lanes[0].operands);
  if (first.b >> 62 != 1) return report("a descriptor without the 128-byte swizzle");
  if ((first.b & 0x3FFF) << 4 & 0x380) return report("a descriptor that does not begin at a row of the swizzle");
  auto &history = cta.descriptors[warp / 4];
  const size_t index = lanes[0].wgmmas.count;
  if (index == history.size()) history.push_back({0, first.b});
  if (history[index].second != first.b) return report("warps of a warpgroup disagree on a product");

  const int tokens = 8 * first.tiles;
  auto input = std::make_shared<WgmmaInput>();
  std::vector<float> b(tokens * 16);
  const float *value = table(first.half);
  for (int token = 0; token < tokens; ++token)
    for (int k = 0; k < 16; k += 2) {
      const char *at = cta.shared + offset_of_b(first.b, token, k);
      note_wgmma_read(cta, at, warp);
      if (!first_fault.empty()) return;
      uint32_t pair;
      memcpy(&pair, at, 4);
      input->words.push_back({at, pair});
      b[token * 16 + k] = value[pair & 0xFFFF], b[token * 16 + k + 1] = value[pair >> 16];
    }
  float a[16][16];
  for (int lane = 0; lane < 32; ++lane) {
    const auto *o = static_cast<const WgmmaRsOperands *>(lanes[lane].operands);
    if (o->b != first.b || o->accumulate != first.accumulate || o->tiles != first.tiles)
      return report("lanes of a warp disagree on a product");
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

void finish_wgmma(Lane &lane, const PendingWgmma &pending_wgmma, bool last) {
  WgmmaState &own = lane.wgmmas;
  if (pending_wgmma.a && memcmp(pending_wgmma.a, pending_wgmma.a_then, 16)) report("registers of A changed while a product reads them");
  for (size_t i = 0; i < pending_wgmma.result.size(); ++i) {
    uint32_t bits;
    memcpy(&bits, &pending_wgmma.c[i], 4);
    float expected = pending_wgmma.result[i];
    if (options.late_copies) memcpy(&expected, &kPoison, 4);
    if ((options.late_copies || last) && memcmp(&bits, &expected, 4)) return report("sums changed while a product runs");
  }
  if (last) memcpy(pending_wgmma.c, pending_wgmma.result.data(), 4 * pending_wgmma.result.size());
  own.completed[pending_wgmma.c] = ++clock_ticks;
  if (lane.index % 32) return;
  for (const auto &[at, then] : pending_wgmma.input->words) {
    note_wgmma_read(*lane.cta, at, lane.warp());
    if (memcmp(at, &then, 4)) report("shared memory changed while a product reads it");
  }
}

void wait_wgmmas(Lane &lane, int pending) {
  WgmmaState &own = lane.wgmmas;
  while (static_cast<int>(own.groups.size()) > pending && first_fault.empty()) {
    const std::vector<PendingWgmma> done = std::move(own.groups.front());
    own.groups.pop_front();
    for (size_t i = 0; i < done.size(); ++i) {
      bool last = !own.pending(done[i].c);
      for (size_t j = i + 1; j < done.size(); ++j) last = last && done[j].c != done[i].c;
      finish_wgmma(lane, done[i], last);
    }
  }
}
