"""Errors planted in the PTX of right kernels: each must show as a fault of the interpreter, or in the results."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

from tests.cuda.ptx import units
from tests.cuda.ptx.launches import Device
from tests.cuda.ptx.translate import Program

DECODE, PREFILL, FUSED, WIDE = "wna16<Half,4,8,0>", "wna16_wide<Half,4,128,0>", "w8a8<9,8,1,1>", "w8a8_wide<9,128,1>"
INT8_WIDE = "w8a8_wide<8,128,0>"
R, RD, VECTOR = r"%r\d+", r"%rd\d+", r"\{[^}]*\}"
FULL, EMPTY = r"mbarrier\.try_wait\.parity\.shared\S+", r"mbarrier\.try_wait\.parity\.acquire\S+"
TENSOR = r"cp\.async\.bulk\.tensor"


@dataclass(frozen=True)
class Planted:
    """A substitution in the PTX of ``kernel``: of the first ``count`` places, or of all."""

    name: str
    kernel: str
    pattern: str
    replacement: str
    count: int = 0

    def apply(self, text: str) -> str:
        changed, places = re.subn(self.pattern, self.replacement, text, count=self.count)
        assert places, f"{self.name}: the kernel has no {self.pattern}"
        assert changed != text, self.name
        return changed


def of_decode(kernel: str, groups: int) -> list[Planted]:
    """cp.async, ldmatrix, mma.sync, clusters. ``groups``: how many the main loop leaves in flight."""
    return [
        Planted("B of mma swapped", kernel, rf"(mma\.sync.*?\{{.*?\}}, \{{.*?\}}, )\{{({R}),({R})\}}", r"\1{\3,\2}"),
        Planted("A of mma swapped", kernel, rf"(mma\.sync.*?\{{.*?\}}, )\{{({R}),({R}),", r"\1{\3,\2,"),
        Planted("C of mma swapped", kernel, r"(mma\.sync\S+) \{(%f\d+),(%f\d+),", r"\1 {\3,\2,"),
        Planted("a row of ldmatrix off by 16 bytes", kernel, rf"(ldmatrix.*?\[)({R})\]", r"\1\2+16]", 1),
        Planted("a row of ldmatrix misaligned", kernel, rf"(ldmatrix.*?\[)({R})\]", r"\1\2+8]", 1),
        Planted("no wait for copies", kernel, r"cp\.async\.wait_group [0-9];", ""),
        Planted("a wait for one group too few", kernel, rf"(cp\.async\.wait_group) {groups};", rf"\1 {groups + 1};"),
        Planted("no commit", kernel, r"cp\.async\.commit_group;", ""),
        Planted("copies past the end of the tensors", kernel, rf"(cp\.async\.cg.*?, 16), {R};", r"\1;"),
        Planted("copies to the wrong stage", kernel, rf"(cp\.async\.cg\S+ \[{R})\]", r"\1+16]", 1),
        Planted("no barrier", kernel, r"bar\.sync\s+0;", ""),
        Planted(
            "no cluster barrier", kernel, r"barrier\.cluster\.arrive\.release;\nbarrier\.cluster\.wait\.acquire;", ""
        ),
        Planted("no wait at the cluster barrier", kernel, r"barrier\.cluster\.wait\.acquire;", ""),
        Planted("sums of one CTA only", kernel, rf"(mapa\.shared::cluster\.u32 {R}, {R}), {R};", r"\1, 0;"),
        Planted("no wait for the preceding kernel", kernel, r"griddepcontrol\.wait;", ""),
    ]


OTHER_PHASE = r"{ .reg .b32 o; xor.b32 o, \3, 1; \1 \2, o; }"
CLUSTER_SYNC = r"barrier\.cluster\.arrive\.release;\nbarrier\.cluster\.wait\.acquire;"
DESCRIPTOR = 1 << 62 | 64 << 32 | 1 << 16  # 128-byte swizzle, groups of 8 rows 1024 bytes apart

# The fused kernel reads the start of the weight where a copy is not valid, for channels that it does not store.
HARMLESS = ("copies past the end of the tensors",)

QUANTIZATION = [
    Planted("a shuffle over the wrong distance", FUSED, r"mov\.u32(\s+%r\d+), 16;(\s*mov)", r"mov.u32\1, 8;\2"),
]

# wgmma with A in registers.
PRODUCTS = [
    Planted("no wgmma fence", PREFILL, r"wgmma\.fence\.sync\.aligned;", ""),
    Planted("A overwritten in flight", PREFILL, rf"(wgmma\.mma\S+ {VECTOR}, \{{({R}),[^;]*;)", r"\1 mov.u32 \2, 0;"),
    Planted("sums read in flight", PREFILL, r"wait_group\.sync\.aligned [01];", "wait_group.sync.aligned 2;"),
    Planted("no wgmma commit", PREFILL, r"wgmma\.commit_group\.sync\.aligned;", ""),
    Planted("no proxy fence", PREFILL, r"fence\.proxy\.async\.shared::cta;", ""),
    Planted("no swizzle in the descriptor", PREFILL, str(DESCRIPTOR), str(DESCRIPTOR & ~(3 << 62))),
    Planted("64-byte swizzle in the descriptor", PREFILL, str(DESCRIPTOR), str(DESCRIPTOR ^ 3 << 62)),
    Planted("half the stride in the descriptor", PREFILL, str(DESCRIPTOR), str(DESCRIPTOR - (32 << 32))),
    Planted("twice the stride in the descriptor", PREFILL, str(DESCRIPTOR), str(DESCRIPTOR + (64 << 32))),
    Planted("a negated product", PREFILL, r", p, 1, 1, 0;", ", p, 1, -1, 0;"),
    Planted("a transposed B", PREFILL, r", p, 1, 1, 0;", ", p, 1, 1, 1;"),
    Planted("sums kept between groups", PREFILL, r"setp\.ne\.b32 p, (%r\d+), 0;", "setp.eq.b32 p, 0, 0;"),
    Planted("A of wgmma swapped", PREFILL, rf"(wgmma\.mma_async\S+ {VECTOR}, )\{{({R}),({R}),", r"\1{\3,\2,"),
    Planted("sums of wgmma swapped", PREFILL, r"(wgmma\.mma_async\S+) \{(%f\d+),(%f\d+),", r"\1 {\3,\2,"),
    Planted("a step of K too far", PREFILL, rf"add\.s64\s+({RD}), ({RD}), 4;", r"add.s64 \1, \2, 6;"),
    Planted("no barrier", PREFILL, r"bar\.sync\s+0;", ""),
    Planted("no wait for copies", PREFILL, r"cp\.async\.wait_group [0-9];", ""),
]

# TMA, mbarriers, setmaxnreg, clusters, wgmma with both operands in shared memory.
PIPELINE = [
    Planted("16 bytes too few expected", WIDE, rf"add\.s32(\s+{R}, {R}), 32768;", r"add.s32\1, 32752;"),
    Planted("16 bytes too many expected", WIDE, rf"add\.s32(\s+{R}, {R}), 32768;", r"add.s32\1, 32784;"),
    Planted("a multicast to one CTA", WIDE, r"mov\.u16\s+(%rs\d+), 3;", r"mov.u16 \1, 1;"),
    Planted("a multicast beyond the cluster", WIDE, r"mov\.u16\s+(%rs\d+), 3;", r"mov.u16 \1, 7;"),
    Planted("no multicast", WIDE, r"\.multicast::cluster (.*), %rs\d+;", r" \1;"),
    Planted("an empty stage is not waited for", WIDE, rf"{EMPTY} p, .*;", "setp.eq.u32 p, 0, 0;"),
    Planted("a full stage is not waited for", WIDE, rf"{FULL} p, .*;", "setp.eq.u32 p, 0, 0;"),
    Planted("the other phase of the full barrier", WIDE, rf"({FULL}) (p, \[{R}\]), ({R});", OTHER_PHASE),
    Planted("the other phase of the empty barrier", WIDE, rf"({EMPTY}) (p, \[{R}\]), ({R});", OTHER_PHASE),
    Planted("barriers of 2 arrivals", WIDE, rf"(mbarrier\.init\S+ \[{R}\]), {R};", r"\1, 2;"),
    Planted("a wait of the CTA's scope only", WIDE, r"(try_wait\.parity)\.acquire\.cluster", r"\1"),
    Planted("an arrival that orders nothing", WIDE, r"(mbarrier\.arrive)\.release\.cluster", r"\1.relaxed.cluster"),
    Planted("a cluster barrier that orders nothing", WIDE, r"(barrier\.cluster\.arrive)\.release", r"\1.relaxed"),
    Planted("no arrival at the other CTA", WIDE, rf"mapa\S+ there, ({R}), {R};", r"mov.u32 there, \1;"),
    Planted("no fence of the initialization", WIDE, r"fence\.mbarrier_init\.release\.cluster;", ""),
    Planted("no barrier after the initialization", WIDE, CLUSTER_SYNC, "", 1),
    Planted("no barrier at the end", WIDE, rf"{CLUSTER_SYNC}(\s+// end inline asm\s+\S+\s+ret)", r"\1"),
    Planted("registers are not given back", WIDE, r"setmaxnreg\.dec\S+ 40;", ""),
    Planted("more registers than there are", WIDE, r"(setmaxnreg\.inc\S+) 232;", r"\1 240;"),
    Planted("coordinates swapped", WIDE, rf"({TENSOR}.*?), \{{({R}), ({R})\}}", r"\1, {\3, \2}"),
    Planted("a box 128 bytes further", WIDE, rf"({TENSOR}\S+ \[{R})\]", r"\1+128]"),
    Planted("a misaligned box", WIDE, rf"({TENSOR}\S+ \[{R})\]", r"\1+64]"),
    Planted("scales 16 bytes further", WIDE, rf"(cp\.async\.bulk\.shared\S+ \[{R})\]", r"\1+16]"),
    Planted("no wait for the preceding kernel", WIDE, r"griddepcontrol\.wait;", ""),
    Planted("no wgmma fence", WIDE, r"wgmma\.fence\.sync\.aligned;", ""),
    Planted("sums read in flight", WIDE, r"wgmma\.wait_group\.sync\.aligned 0;", ""),
    Planted("a step of K too far", WIDE, str(DESCRIPTOR + 4), str(DESCRIPTOR + 6)),
    Planted("lanes that have not met", WIDE, r"bar\.warp\.sync\s+-1;", ""),
    Planted("a shuffle over the wrong distance", WIDE, r"(shfl\.\S+\s.*, )%r\d+(, %r\d+, %r\d+;)", r"\g<1>4\2"),
    Planted("stages released before they are read", INT8_WIDE, r"(wgmma\.wait_group\.sync\.aligned) 1;", r"\1 2;"),
    Planted("A and B of wgmma swapped", INT8_WIDE, rf"(wgmma\.mma\S+ {VECTOR}), ({RD}), ({RD}),", r"\1, \3, \2,"),
]

PLANTED = [
    *of_decode(DECODE, 2),
    Planted("a mask of the dequantization", DECODE, r"(lop3\.b32 [^;]*), 0xEA;", r"\1, 0xE8;", 1),
    *[planted for planted in of_decode(FUSED, 0) if planted.name not in HARMLESS],
    *QUANTIZATION,
    *PRODUCTS,
    *PIPELINE,
]


@functools.cache
def program(planted: Planted, target: str = "sm_90a") -> Program:
    text = planted.apply(units.text_of(planted.kernel, target))
    return Program(units.kernel_in(text, planted.kernel))


def programs(planted: Planted) -> Callable[[str, str], Program]:
    """For :class:`~tests.cuda.ptx.launches.Device`: one kernel with its error, the others as they are."""
    return lambda kernel, target: (
        program(planted, target) if kernel == planted.kernel else units.program(kernel, target)
    )


def is_seen(error: Planted, case: Callable[[Device], object], seeds: int = 4) -> bool:
    """Whether a case fails with some order of warps and copies."""
    for seed in range(seeds):
        try:
            case(Device(seed=seed, programs=programs(error)))
        except AssertionError:
            return True
    return False
