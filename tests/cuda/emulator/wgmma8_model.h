/* How emulator.cpp runs the products of wgmma8.h: included there, behind wgmma_model.h. */

/* The codes of `rows` rows behind a descriptor, 32 columns each; noted as read, and to be the same when the product ends. */
void read_codes(Group &block, uint64_t descriptor, int first_row, int rows, int warp, ProductInput &input,
                std::vector<uint8_t> &codes) {
  codes.resize(rows * 32);
  for (int row = 0; row < rows; ++row)
    for (int k = 0; k < 32 && first_fault.empty(); k += 4) {
      const char *at = block.shared + place_of_b(descriptor, first_row + row, k / 2);
      note_product_read(block, at, warp);
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
void issue_wgmma8(Lane *lanes, Decode decode) {
  Group &block = *lanes[0].block;
  const int warp = lanes[0].warp();
  const Wgmma8Operands first = *static_cast<const Wgmma8Operands *>(lanes[0].operands);
  auto input = std::make_shared<ProductInput>();
  std::vector<uint8_t> a_codes, b_codes;
  read_codes(block, first.a, warp % 4 * 16, 16, warp, *input, a_codes);
  read_codes(block, first.b, 0, 8 * first.tiles, warp, *input, b_codes);
  if (!first_fault.empty()) return;
  const std::vector<Sum> a = decoded<Sum>(a_codes, decode), b = decoded<Sum>(b_codes, decode);
  for (int lane = 0; lane < 32; ++lane) {
    const auto *o = static_cast<const Wgmma8Operands *>(lanes[lane].operands);
    if (o->a != first.a || o->b != first.b || o->accumulate != first.accumulate || o->tiles != first.tiles)
      return report("lanes of a warp disagree on a product");
    Products &own = lanes[lane].products;
    check_fences(own, o->c);
    const Product *before = own.pending(o->c);
    Product product = {o->c, nullptr, {}, {}, input};
    product.result.resize(4 * o->tiles);
    for (int i = 0; i < 4 * o->tiles; ++i) {
      const Sum *const row = &a[c_row(lane, i % 4) * 32], *const column = &b[(i / 4 * 8 + c_col(lane, i % 4)) * 32];
      Sum sum = 0, earlier = 0;
      for (int k = 0; k < 32; ++k) sum += row[k] * column[k];
      if (o->accumulate) memcpy(&earlier, before ? &before->result[i] : &o->c[i], 4);
      sum += earlier;
      memcpy(&product.result[i], &sum, 4);
    }
    for (int i = 0; i < 4 * o->tiles; ++i) memcpy(&o->c[i], options.late_copies ? &kPoison : reinterpret_cast<const uint32_t *>(&product.result[i]), 4);
    own.open.push_back(std::move(product));
    own.issued = ++clock_ticks;
    ++own.count;
  }
}

void run_wgmma8(Lane *lanes) {
  const Wgmma8Operands first = *static_cast<const Wgmma8Operands *>(lanes[0].operands);
  if (first.a >> 62 != 1 || first.b >> 62 != 1) return report("a descriptor without the 128-byte swizzle");
  if ((first.a & 0x38) || (first.b & 0x38)) return report("a descriptor that does not begin at a row of the swizzle");
  auto &history = lanes[0].block->descriptors[lanes[0].warp() / 4];
  const size_t index = lanes[0].products.count;
  if (index == history.size()) history.push_back({first.a, first.b});
  if (history[index] != std::make_pair(first.a, first.b)) return report("warps of a warpgroup disagree on a product");
  if (first.integer)
    issue_wgmma8<int32_t>(lanes, [](uint8_t code) { return static_cast<int8_t>(code); });
  else
    issue_wgmma8<float>(lanes, e4m3_table);
}
