#include "isa.h"

#include "vqp_cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(VQP_HAVE_AMX)
#include <dlfcn.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace vqp {
namespace {

#if defined(__x86_64__)

// XCR0: which register files the operating system saves on a context switch.
uint64_t xcr0() {
    uint32_t low = 0, high = 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return static_cast<uint64_t>(high) << 32 | low;
}

bool bit(unsigned value, int index) { return value >> index & 1; }

#if defined(VQP_HAVE_AMX)

// Whether the process carries out tile instructions that its CPU lacks: the tests do (tests/kernels/amx_emulator.cpp).
bool emulated() {
    static const bool found = [] {
        const auto start = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "vqp_amx_emulate"));
        return start && start();
    }();
    return found;
}

bool has_amx(unsigned leaf7_d) {
    const bool cpu = bit(leaf7_d, 22) && bit(leaf7_d, 24) && bit(leaf7_d, 25);  // AMX-BF16, AMX-TILE, AMX-INT8
    const uint64_t tile_state = 1u << 17 | 1u << 18;                            // XTILECFG, XTILEDATA
    return (cpu && (xcr0() & tile_state) == tile_state) || emulated();
}

// Linux: a process asks for the registers of AMX before it uses them (Documentation/arch/x86/xstate.rst).
bool request_tiles() {
    constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return emulated() || syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

#else

bool has_amx(unsigned) { return false; }
bool request_tiles() { return false; }

#endif

int detect() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return VQP_SCALAR;
    const bool fma = bit(c, 12), osxsave = bit(c, 27), avx = bit(c, 28), f16c = bit(c, 29);
    if (!fma || !osxsave || !avx || !f16c || (xcr0() & 0x6) != 0x6) return VQP_SCALAR;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !bit(b, 5)) return VQP_SCALAR;
    const bool avx512 = bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31);  // F, DQ, BW, VL
    if (!avx512 || (xcr0() & 0xE6) != 0xE6) return VQP_AVX2;
    if (!bit(c, 11)) return VQP_AVX512;
    unsigned a1 = 0, b1 = 0, c1 = 0, d1 = 0;
    if (!__get_cpuid_count(7, 1, &a1, &b1, &c1, &d1) || !bit(a1, 5)) return VQP_AVX512_VNNI;
    return has_amx(d) ? VQP_AMX : VQP_AVX512_BF16;
}

#else

int detect() { return VQP_SCALAR; }
bool request_tiles() { return false; }

#endif

}  // namespace

int max_level() {
    static const int level = detect();
    return level;
}

int default_level() { return max_level() < VQP_AMX ? max_level() : VQP_AVX512_BF16; }

bool amx_permitted() {
    static const bool permitted = request_tiles();
    return permitted;
}

}  // namespace vqp
