/* How emulator.cpp runs the products of wgmma8.h: included there, behind wgmma_model.h. */

/* The codes of `rows` rows behind a descriptor, 32 columns each; noted as read, and to be the same when the product
 * ends. */
void read_codes(Cta &cta, uint64_t descriptor, int first_row, int rows, int warp, WgmmaInput &input,
                std::vector<uint8_t> &codes) {
  codes.resize(rows * 32);
  for (int row = 0; row < rows; ++row)
    for (int k = 0; k < 32 && first_fault.empty(); k += 4) {
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
  if (!first_fault.empty()) return;
  const std::vector<Sum> a = decoded<Sum>(a_codes, decode), b = decoded<Sum>(b_codes, decode);
  for (int lane = 0; lane < 32; ++lane) {
    const auto *o = static_cast<const WgmmaSsOperands *>(lanes[lane].operands);
    if (o->a != first.a || o->b != first.b || o->accumulate != first.accumulate || o->tiles != first.tiles)
      return report("lanes of a warp disagree on a product");
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

void run_wgmma_ss(Lane *lanes) {
  const WgmmaSsOperands first = *static_cast<const WgmmaSsOperands *>(lanes[0].operands);
  if (first.a >> 62 != 1 || first.b >> 62 != 1) return report("a descriptor without the 128-byte swizzle");
  if ((first.a & 0x38) || (first.b & 0x38)) return report("a descriptor that does not begin at a row of the swizzle");
  auto &history = lanes[0].cta->descriptors[lanes[0].warp() / 4];
  const size_t index = lanes[0].wgmmas.count;
  if (index == history.size()) history.push_back({first.a, first.b});
  if (history[index] != std::make_pair(first.a, first.b)) return report("warps of a warpgroup disagree on a product");
  if (first.integer)
    issue_wgmma_ss<int32_t>(lanes, [](uint8_t code) { return static_cast<int8_t>(code); });
  else
    issue_wgmma_ss<float>(lanes, e4m3_table);
}
