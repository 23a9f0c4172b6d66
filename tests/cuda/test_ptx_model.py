"""The PTX interpreter itself, on programs of a few lines: it computes what PTX says, and refuses what PTX leaves
undefined. No compiler needed."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch

from tests.cuda.ptx import numbers
from tests.cuda.ptx.faults import PtxFault
from tests.cuda.ptx.machine import Launch, Machine
from tests.cuda.ptx.memory import GlobalMemory
from tests.cuda.ptx.syntax import parse
from tests.cuda.ptx.tensor_maps import TensorMap
from tests.cuda.ptx.translate import Program

START = """
mov.u32 %r1, %tid.x; mov.u32 %r2, smem; shl.b32 %r3, %r1, 2; add.s32 %r4, %r2, %r3;
ld.param.u64 %rd1, [toy_0]; cvta.to.global.u64 %rd1, %rd1; cvt.u64.u32 %rd2, %r3; add.s64 %rd3, %rd1, %rd2;
"""
SHORT = {
    "NEIGHBOUR": "xor.b32 %r5, %r3, 128; add.s32 %r6, %r2, %r5;",  # the word of the thread 32 further
    "PIECE": "shl.b32 %r8, %r1, 4; cvt.u64.u32 %rd4, %r8; add.s32 %r8, %r8, %r2; add.s64 %rd4, %rd1, %rd4;",
    "COPY": "cp.async.cg.shared.global [%r8], [%rd4], 16;",
    "INIT": "setp.eq.s32 %p1, %r1, 0; @%p1 mbarrier.init.shared::cta.b64 [%r2], 1;",
    "FENCE": "@%p1 fence.mbarrier_init.release.cluster; bar.sync 0;",
    "WAIT": """$W: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r2], %r21; @!%p2 bra $W;
               ld.shared.u32 %r7, [%r4+1024];""",
    "CLUSTER": "barrier.cluster.arrive.release; barrier.cluster.wait.acquire;",
}


def programs(text: str) -> dict[str, tuple[str, str]]:
    """Body and expected message by name. Words in capitals are the ones of SHORT."""
    found: dict[str, tuple[str, str]] = {}
    name = ""
    for line in text.strip().splitlines():
        if line.startswith(" "):
            body, message = found[name]
            found[name] = (body + re.sub("[A-Z]{4,}", lambda word: SHORT[word[0]], line) + "\n", message)
        else:
            name, _, message = line.partition(":")
            found[name] = ("", message.strip())
    return found


def run(
    body: str, threads: int = 64, seed: int = 0, shared: int = 8192, cluster: int = 1, dependent: bool = False
) -> torch.Tensor:
    """The words that a kernel leaves in its only tensor, which begins as 0, 1, 2 ..."""
    text = f"""
.version 9.0
.target sm_90a
.extern .shared .align 1024 .b8 smem[];
.visible .entry toy(
	.param .u64 toy_0
)
.maxntid {threads}, 1, 1
{{
	.reg .pred %p<9>; .reg .b16 %rs<9>; .reg .b32 %r<99>; .reg .b64 %rd<9>;
{START}{body}
ret;
}}
"""
    out = torch.arange(1024, dtype=torch.int32)
    memory = GlobalMemory()
    memory.add("out", out.data_ptr(), 4096)
    shape = Launch((cluster, 1, 1), threads, shared, struct.pack("<Q", out.data_ptr()), cluster, dependent)
    (kernel,) = parse(text)
    Machine(Program(kernel), memory, shape, seed).run()
    return out


# Words of the output by thread.
EXPECTED: dict[str, Callable[[int], int]] = {
    "barrier": lambda i: i ^ 32,
    "divergence": lambda i: 7 if i % 2 == 0 else 9,
    "loops of different lengths": lambda i: i // 3 * 3 + 3,
    "shuffle": lambda i: i ^ 4,
    "scopes": lambda i: i + 5,
    "copy": lambda i: i,
    "arithmetic": lambda i: int((-6 * (i if i < 32 else i - 64) + 1) / 4) % 2**32,
    "prmt": lambda i: i << 24 | 0xFF7766,
    "cluster": lambda i: 1,
}
RIGHT = programs("""
barrier:
    NEIGHBOUR st.shared.u32 [%r4], %r1; bar.sync 0; ld.shared.u32 %r7, [%r6]; st.global.u32 [%rd3], %r7;
divergence:
    and.b32 %r5, %r1, 1; setp.eq.s32 %p1, %r5, 0; mov.u32 %r6, 7; @%p1 bra $A; mov.u32 %r6, 9;
    $A: bar.warp.sync -1; st.global.u32 [%rd3], %r6;
loops of different lengths:
    mov.u32 %r5, 0; $L: add.s32 %r5, %r5, 3; setp.le.u32 %p1, %r5, %r1; @%p1 bra $L; st.global.u32 [%rd3], %r5;
shuffle:
    shfl.sync.bfly.b32 %r6|%p1, %r1, 4, 31, -1; st.global.u32 [%rd3], %r6;
scopes:
    { .reg .b32 t; add.s32 t, %r1, 5; { .reg .b32 t; mov.u32 t, 1; } st.global.u32 [%rd3], t; }
copy:
    PIECE COPY cp.async.commit_group; cp.async.wait_group 0; ld.shared.u32 %r7, [%r8+4]; st.global.u32 [%rd4+4], %r7;
arithmetic:
    shl.b32 %r5, %r1, 26; shr.s32 %r5, %r5, 26; mul.wide.s32 %rd5, %r5, -3; cvt.u32.u64 %r6, %rd5;
    mad.lo.s32 %r6, %r6, 2, 1; div.s32 %r6, %r6, 4; st.global.u32 [%rd3], %r6;
prmt:
    prmt.b32 %r6, %r1, 0x88776655, 0x0F65; st.global.u32 [%rd3], %r6;
cluster:
    mov.u32 %r9, %cluster_ctarank; st.shared.u32 [%r4], %r9; CLUSTER
    xor.b32 %r10, %r9, 1; mapa.shared::cluster.u32 %r11, %r4, %r10; ld.shared::cluster.u32 %r12, [%r11];
    setp.eq.s32 %p1, %r9, 0; @%p1 st.global.u32 [%rd3], %r12; CLUSTER
""")


@pytest.mark.parametrize("name", RIGHT)
def test_right_programs(name: str) -> None:
    for seed in range(4):
        words = run(RIGHT[name][0], seed=seed, cluster=2 if name == "cluster" else 1)
        for i in range(64):
            at = 4 * i + 1 if name == "copy" else i  # copies are of 16 bytes
            assert int(words[at]) % 2**32 == EXPECTED[name](at)


WRONG = programs("""
no barrier: nothing wrote|another warp
    NEIGHBOUR st.shared.u32 [%r4], %r1; ld.shared.u32 %r7, [%r6];
overwritten: another warp
    NEIGHBOUR st.shared.u32 [%r4], %r1; bar.sync 0; ld.shared.u32 %r7, [%r6]; st.shared.u32 [%r4], %r7;
outside of shared memory: outside of the 8192 bytes
    ld.shared.u32 %r5, [%r4+8192];
misaligned: misaligned
    st.shared.u32 [%r4], %r1; ld.shared.u32 %r5, [%r4+2];
unwritten: nothing wrote
    ld.shared.u32 %r5, [%r4];
outside of the tensor: outside every tensor
    ld.global.u32 %r5, [%rd3+4096];
an address cut to 32 bits: outside every tensor
    cvt.u32.u64 %r5, %rd1; cvt.u64.u32 %rd4, %r5; ld.global.u32 %r6, [%rd4];
a shared address as a global one: outside every tensor
    cvt.u64.u32 %rd4, %r4; ld.global.u32 %r6, [%rd4];
two threads store: two threads store
    st.global.u32 [%rd1], %r1;
read-only: read-only path
    st.global.u32 [%rd3], %r1; ld.global.nc.u32 %r5, [%rd3];
half a warp: have not met
    and.b32 %r9, %r1, 31; setp.lt.u32 %p1, %r9, 16; @%p1 bra $A;
    ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r5,%r6}, [%r4]; $A:
threads have ended: deadlock
    setp.lt.u32 %p1, %r1, 32; @%p1 bra $A; bar.sync 0; $A:
a shuffle without some: have ended|deadlock
    setp.lt.u32 %p1, %r1, 16; @%p1 bra $A; shfl.sync.bfly.b32 %r5|%p2, %r1, 1, 31, -1; $A:
copies in flight: copies in flight
    PIECE COPY
no wait for a copy: still filling
    PIECE COPY cp.async.commit_group; ld.shared.u32 %r7, [%r8];
a copy too small: no such copy
    PIECE cp.async.cg.shared.global [%r8], [%rd4], 8;
a misaligned copy: misaligned
    PIECE cp.async.cg.shared.global [%r8], [%rd3], 16;
a cache policy: cache policy
    cp.async.cg.shared.global.L2::cache_hint [%r4], [%rd1], 16, %rd2;
no mbarrier: nothing initialized
    mov.u32 %r21, 0; WAIT
an mbarrier before a barrier: nothing initialized|made its initialization visible
    INIT mov.u32 %r21, 0; WAIT
a phase that does not end: deadlock
    INIT FENCE mov.u32 %r21, 0; WAIT
bytes that do not come: deadlock
    INIT FENCE mov.u32 %r21, 0; mov.u32 %r22, 16;
    @%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], %r22; WAIT
too many arrivals: more arrivals
    INIT FENCE mov.u32 %r22, 16; mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], %r22;
no CTA of that rank: of a cluster of 1
    mov.u32 %r9, 3; mapa.shared::cluster.u32 %r5, %r4, %r9; ld.shared::cluster.u32 %r6, [%r5];
no such register count: no such register count
    setmaxnreg.dec.sync.aligned.u32 44;
fewer registers by an increase: from .* to 24
    setmaxnreg.inc.sync.aligned.u32 24;
no wgmma fence: fence
    setp.eq.u32 %p3, 0, 0;
    wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%r5,%r6,%r7,%r8}, %rd1, %rd2, %p3, 1, 1, 0, 0;
""")


@pytest.mark.parametrize("name", WRONG)
def test_wrong_programs_are_refused(name: str) -> None:
    body, message = WRONG[name]
    for seed in range(4):
        with pytest.raises(PtxFault, match=message):
            run(body, threads=128 if "wgmma" in body else 64, seed=seed)


def test_a_dependent_launch_waits() -> None:
    load = "ld.global.u32 %r5, [%rd3];"
    run(f"griddepcontrol.wait; {load}", dependent=True)
    with pytest.raises(PtxFault, match=r"before griddepcontrol.wait"):
        run(load, dependent=True)
    with pytest.raises(PtxFault, match="without waiting"):
        run("", dependent=True)


def test_launches_that_no_device_makes() -> None:
    with pytest.raises(PtxFault, match="shared memory"):
        run("", shared=228 << 10)
    with pytest.raises(PtxFault, match="cluster"):
        run("", cluster=9)


def test_an_unknown_instruction_is_named() -> None:
    with pytest.raises(AssertionError, match="popc"):
        run("popc.b32 %r5, %r1;")


def test_fma_rounds_once() -> None:
    generator = np.random.default_rng(1)
    a, b = (generator.standard_normal(4000).astype(np.float32) for _ in range(2))
    c = generator.standard_normal(4000).astype(np.float32) * np.float32(2.0) ** generator.integers(-40, 4, 4000)
    # Sums just beside the middle between two FP32 values, which FP64 cannot tell from it.
    a[:500], b[:500] = np.float32(1 + 2**-23), np.float32(1 - 2**-24)
    c[:500] = np.float32(2) ** generator.integers(-60, 30, 500)
    found = numbers.fma_float32(a, b, c)
    for x, y, z, got in zip(a, b, c, found, strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        near = abs(Fraction(float(got)) - exact)
        for other in (np.nextafter(got, np.float32(-np.inf)), np.nextafter(got, np.float32(np.inf))):
            assert near <= abs(Fraction(float(other)) - exact)


def test_16_bit_floats_round_as_torch() -> None:
    values = torch.randn(20000, generator=torch.Generator().manual_seed(1)) * torch.logspace(-9, 6, 20000)
    exact = values.numpy().astype(np.float64)
    assert (numbers.half_bits(exact).view(np.int16) == values.half().view(torch.int16).numpy()).all()
    assert (numbers.bfloat_bits(exact).view(np.int16) == values.bfloat16().view(torch.int16).numpy()).all()


def test_e4m3_rounds_as_torch() -> None:
    values = torch.randn(20000, generator=torch.Generator().manual_seed(2)) * torch.logspace(-4, 3, 20000)
    expected = values.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert (numbers.e4m3_bits(values.numpy()) == expected).all()
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double().numpy()
    assert np.array_equal(numbers.E4M3, every, equal_nan=True)


def test_what_a_tensor_map_refuses() -> None:
    right = {"base": 1 << 20, "rows": 10, "columns": 100, "stride": 112, "box_rows": 64, "box_columns": 128}
    TensorMap(**right)
    for wrong in ({"base": 8}, {"stride": 100}, {"box_rows": 257}, {"box_columns": 256}, {"rows": 0}):
        with pytest.raises(PtxFault):
            TensorMap(**{**right, **wrong})
