// AMX tile instructions on a CPU without them: each raises SIGILL, whose handler decodes it and carries it out.
//
// So the library under test is the one that ships, compiled as it ships. Loaded before it (LD_PRELOAD, or linked in),
// it calls vqp_amx_emulate(). Semantics are the pseudo-code of the Intel SDM volume 2 (LDTILECFG, TDPBF16PS, TDPBUSD,
// TILELOADD, ...); encodings are VEX.128.0F38.W0 49, 4B, 5C and 5E. Whatever a CPU would refuse, and what the kernels
// promise not to do (a second configuration without a release), ends the process.

#include <signal.h>
#include <ucontext.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace {

constexpr int kTiles = 8, kRows = 16, kRowBytes = 64;

// The tile registers of a thread.
struct State {
    bool configured;
    uint8_t rows[kTiles];
    uint16_t row_bytes[kTiles];
    alignas(64) uint8_t data[kTiles][kRows][kRowBytes];
};
thread_local State state;

enum Counted { kConfigured, kReleased, kLoaded, kStored, kBf16, kInt8, kCounters };
std::atomic<int64_t> counts[kCounters];

[[noreturn]] void refuse(const char *why) {
    std::fprintf(stderr, "amx emulator: %s\n", why);
    std::abort();
}

void require(bool condition, const char *why) {
    if (!condition) refuse(why);
}

void use(std::initializer_list<int> tiles) {
    require(state.configured, "a tile is used before LDTILECFG");
    for (int t : tiles) require(state.rows[t] > 0 && state.row_bytes[t] > 0, "a tile is used that is not configured");
}

void load_config(const uint8_t *config) {
    require(!state.configured, "LDTILECFG while tiles are in use: TILERELEASE is missing");
    require(config[0] == 1, "LDTILECFG: palette is not 1");
    require(config[1] == 0, "LDTILECFG: start_row is not 0");
    for (int i = 2; i < 16; ++i) require(config[i] == 0, "LDTILECFG: reserved byte");
    for (int i = 32; i < 48; ++i) require(config[i] == 0, "LDTILECFG: row of a tile above 7");
    for (int i = 56; i < 64; ++i) require(config[i] == 0, "LDTILECFG: reserved byte");
    std::memset(&state, 0, sizeof state);
    std::memcpy(state.row_bytes, config + 16, 16);
    std::memcpy(state.rows, config + 48, kTiles);
    for (int t = 0; t < kTiles; ++t) {
        require(state.rows[t] <= kRows && state.row_bytes[t] <= kRowBytes, "LDTILECFG: a tile is too large");
        require((state.rows[t] == 0) == (state.row_bytes[t] == 0), "LDTILECFG: half of a tile's size is zero");
    }
    state.configured = true;
}

void load(int tile, const uint8_t *from, int64_t stride) {
    use({tile});
    std::memset(state.data[tile], 0, sizeof state.data[tile]);
    for (int r = 0; r < state.rows[tile]; ++r) {
        std::memcpy(state.data[tile][r], from + r * stride, state.row_bytes[tile]);
    }
}

void store(int tile, uint8_t *to, int64_t stride) {
    use({tile});
    for (int r = 0; r < state.rows[tile]; ++r) std::memcpy(to + r * stride, state.data[tile][r], state.row_bytes[tile]);
}

// Denormal operands and results are zeros of their sign, whatever MXCSR says.
float flushed(float f) { return std::fabs(f) < 0x1p-126f ? std::copysign(0.0f, f) : f; }

float widened(uint16_t bf16) {
    const uint32_t bits = static_cast<uint32_t>(bf16) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return flushed(f);
}

void check_product(int sum, int a, int b) {
    use({sum, a, b});
    require(sum != a && sum != b && a != b, "a product whose operands are not three tiles");
    require(state.row_bytes[sum] % 4 == 0 && state.row_bytes[a] % 4 == 0, "a product of broken elements");
    require(state.rows[sum] == state.rows[a] && state.row_bytes[a] / 4 == state.rows[b] &&
                state.row_bytes[sum] == state.row_bytes[b],
            "a product of tiles that do not fit");
}

// sum[m][n] += even[m][n] + odd[m][n], each the sum over k of one of a pair's products, fused and rounded to even.
void dot_bf16(int sum, int a, int b) {
    check_product(sum, a, b);
    const int columns = state.row_bytes[sum] / 4;
    for (int m = 0; m < state.rows[sum]; ++m) {
        float even[16] = {}, odd[16] = {}, total[16];
        uint16_t x[32], w[32];
        std::memcpy(x, state.data[a][m], sizeof x);
        for (int k = 0; k < state.row_bytes[a] / 4; ++k) {
            std::memcpy(w, state.data[b][k], sizeof w);
            const float first = widened(x[2 * k]), second = widened(x[2 * k + 1]);
            for (int n = 0; n < columns; ++n) {
                even[n] = flushed(std::fma(first, widened(w[2 * n]), even[n]));
                odd[n] = flushed(std::fma(second, widened(w[2 * n + 1]), odd[n]));
            }
        }
        std::memcpy(total, state.data[sum][m], sizeof total);
        for (int n = 0; n < columns; ++n) total[n] = flushed(flushed(total[n]) + flushed(even[n] + odd[n]));
        std::memcpy(state.data[sum][m], total, sizeof total);
    }
}

// sum[m][n] += four products of unsigned bytes of a and signed bytes of b, for each k; wraps, does not saturate.
void dot_bytes(int sum, int a, int b) {
    check_product(sum, a, b);
    for (int m = 0; m < state.rows[sum]; ++m) {
        uint32_t total[16];
        std::memcpy(total, state.data[sum][m], sizeof total);
        for (int k = 0; k < state.row_bytes[a] / 4; ++k) {
            for (int n = 0; n < state.row_bytes[sum] / 4; ++n) {
                for (int i = 0; i < 4; ++i) {
                    total[n] += static_cast<uint32_t>(state.data[a][m][4 * k + i] *
                                                      static_cast<int8_t>(state.data[b][k][4 * n + i]));
                }
            }
        }
        std::memcpy(state.data[sum][m], total, sizeof total);
    }
}

// General registers in the order of their numbers in an instruction.
constexpr int kRegisters[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

// One instruction with a three-byte VEX prefix.
struct Instruction {
    bool tile;            // whether it is one of these instructions
    int opcode, prefix;   // prefix: 0 none, 1 66, 2 F3, 3 F2
    int reg, rm, second;  // rm: the last operand where it is a register
    bool memory;
    uint8_t *address;
    int64_t stride;
    int length;
};

Instruction decode(const uint8_t *code, const greg_t *registers) {
    Instruction i = {};
    // Map 0F38, W0, 128 bits.
    if (code[0] != 0xC4 || (code[1] & 0x1F) != 2 || (code[2] & 0x84) != 0) return i;
    const bool high_index = !(code[1] & 0x40), high_base = !(code[1] & 0x20);
    i.opcode = code[3], i.prefix = code[2] & 3, i.second = ~code[2] >> 3 & 15;
    i.tile = i.opcode == 0x49 || i.opcode == 0x4B || i.opcode == 0x5C || i.opcode == 0x5E;
    const int mode = code[4] >> 6;
    i.reg = code[4] >> 3 & 7, i.rm = code[4] & 7, i.memory = mode != 3, i.length = 5;
    if (!i.memory) return i;
    int64_t address = 0;
    if (i.rm == 4) {
        const int sib = code[i.length++], index = (sib >> 3 & 7) | high_index << 3;
        if (index != 4) i.stride = registers[kRegisters[index]] * (1 << (sib >> 6));
        if (mode != 0 || (sib & 7) != 5) address = registers[kRegisters[(sib & 7) | high_base << 3]];
    } else if (mode != 0 || i.rm != 5) {
        address = registers[kRegisters[i.rm | high_base << 3]];
    }
    const bool relative = mode == 0 && i.rm == 5;
    if (mode == 1) {
        address += static_cast<int8_t>(code[i.length]);
        i.length += 1;
    } else if (mode == 2 || relative || (i.rm == 4 && mode == 0 && (code[5] & 7) == 5)) {
        int32_t offset;
        std::memcpy(&offset, code + i.length, 4);
        address += offset;
        i.length += 4;
    }
    if (relative) address += registers[REG_RIP] + i.length;
    i.address = reinterpret_cast<uint8_t *>(address);
    return i;
}

// Whether the instruction is known, and then done.
bool execute(const Instruction &i) {
    const auto count = [](Counted what) { counts[what].fetch_add(1, std::memory_order_relaxed); };
    if (i.opcode == 0x49 && i.prefix == 0 && i.memory) {
        load_config(i.address + i.stride);
        count(kConfigured);
    } else if (i.opcode == 0x49 && i.prefix == 0 && i.rm == 0 && i.reg == 0) {
        require(state.configured, "TILERELEASE without LDTILECFG");
        std::memset(&state, 0, sizeof state);
        count(kReleased);
    } else if (i.opcode == 0x49 && i.prefix == 3 && !i.memory) {
        use({i.reg});
        std::memset(state.data[i.reg], 0, sizeof state.data[i.reg]);
    } else if (i.opcode == 0x4B && i.prefix == 3 && i.memory && i.rm == 4) {
        load(i.reg, i.address, i.stride);
        count(kLoaded);
    } else if (i.opcode == 0x4B && i.prefix == 2 && i.memory && i.rm == 4) {
        store(i.reg, i.address, i.stride);
        count(kStored);
    } else if (i.opcode == 0x5C && i.prefix == 2 && !i.memory) {
        dot_bf16(i.reg, i.rm, i.second);
        count(kBf16);
    } else if (i.opcode == 0x5E && i.prefix == 1 && !i.memory) {
        dot_bytes(i.reg, i.rm, i.second);
        count(kInt8);
    } else {
        return false;
    }
    return true;
}

void on_illegal(int, siginfo_t *, void *context) {
    greg_t *registers = static_cast<ucontext_t *>(context)->uc_mcontext.gregs;
    bool first = true;
    for (;;) {
        const Instruction i = decode(reinterpret_cast<const uint8_t *>(registers[REG_RIP]), registers);
        const bool done = i.tile && execute(i);
        if (!done && !first) return;
        require(done, "an illegal instruction that is none of the tile instructions");
        registers[REG_RIP] += i.length;
        first = false;  // a signal costs microseconds: tile instructions that follow at once are done with it
    }
}

}  // namespace

extern "C" {

// Called by the library when it looks for AMX.
__attribute__((visibility("default"))) int vqp_amx_emulate() {
    struct sigaction action = {};
    action.sa_sigaction = on_illegal;
    action.sa_flags = SA_SIGINFO;
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGILL, &action, nullptr) != 0) return 0;
    std::atexit([] {
        const char *names[kCounters] = {"configured", "released", "loaded", "stored", "tdpbf16ps", "tdpbusd"};
        std::fprintf(stderr, "amx emulator:");
        for (int i = 0; i < kCounters; ++i) {
            std::fprintf(stderr, "%s %lld %s", i ? "," : "", static_cast<long long>(counts[i]), names[i]);
        }
        std::fprintf(stderr, "\n");
    });
    return 1;
}

}  // extern "C"
