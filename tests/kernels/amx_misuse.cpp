// One small product of each kind (case 0), and five ways to break the rules of tiles: for test_amx.py.

#include <immintrin.h>

#include <cstdint>
#include <cstdlib>

extern "C" int vqp_amx_emulate();

// Three tiles: 0 sums of 2 x 1, 4 two rows of one pair, 6 one row.
static struct alignas(64) {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {4, 0, 0, 0, 4, 0, 4};
    uint8_t rows[16] = {2, 0, 0, 0, 2, 0, 1};
} config;

int main(int, char **argv) {
    const int which = std::atoi(argv[1]);
    vqp_amx_emulate();
    if (which == 1) _tile_zero(0);
    if (which == 3) config.reserved[3] = 1;
    __asm__ volatile("" ::: "memory");
    _tile_loadconfig(&config);
    if (which == 2) _tile_loadconfig(&config);
    if (which == 4) _tile_zero(1);
    if (which == 5) __builtin_trap();
    // bf16: 1.5 and -2 in the first row, 0.25 and 1 in the second; weights 4 and 3; sums start at 10 and 20.
    uint16_t x[4] = {0x3FC0, 0xC000, 0x3E80, 0x3F80}, w[2] = {0x4080, 0x4040};
    float sums[2] = {10, 20};
    __asm__ volatile("" ::: "memory");
    _tile_loadd(0, sums, 4);
    _tile_loadd(4, x, 4);
    _tile_loadd(6, w, 4);
    _tile_dpbf16ps(0, 4, 6);
    _tile_stored(0, sums, 4);
    if (sums[0] != 10 + 6 - 6 || sums[1] != 20 + 1 + 3) return 3;
    uint8_t bytes[8] = {255, 255, 255, 255, 1, 2, 3, 4};
    int8_t codes[4] = {-128, 127, 1, -1};
    int32_t totals[2] = {7, 8};
    __asm__ volatile("" ::: "memory");
    _tile_loadd(0, totals, 4);
    _tile_loadd(4, bytes, 4);
    _tile_loadd(6, codes, 4);
    _tile_dpbusd(0, 4, 6);
    _tile_stored(0, totals, 4);
    if (totals[0] != 7 - 255 || totals[1] != 8 - 128 + 254 + 3 - 4) return 4;
    _tile_release();
    return 0;
}
