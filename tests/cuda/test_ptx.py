"""Every kernel has the recorded opcodes: a file per family here, all of them in ``make ptx``. Needs nvcc, not a GPU."""

from __future__ import annotations

import shutil

import pytest

from tests.cuda.compiled import UNITS
from tests.cuda.ptx import opcodes

RELEASE, RECORD = opcodes.read()

SAMPLE = """
.entry _ZN3vqp12_GLOBAL__N_16reduceINS_4HalfEEEvNS_6ParamsExi(
	.param .align 8 .b8 x[8]
)
{
	ld.param.b64 	%rd1, [x];
$L__BB0_1:
	@%p1 bra 	$L__BB0_1;
	// begin inline asm
	{
.reg .pred p;
setp.ne.b32 p, %r1, 0;
wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {%f0,%f1}, %rd1, p, 1, 1, 0;
}
	// end inline asm
	@!%p2 ld.shared::cluster.f32 %f1, [%r1];
	ret;
}
.visible .entry _ZN3vqp4packENS_10PackParamsE(
)
{
	ret;
}
"""


def test_what_is_counted() -> None:
    names = {"ld.param": 1, "bra": 1, "setp": 1, "wgmma.mma_async": 1, "ld.shared::cluster": 1, "ret": 1}
    assert opcodes.count(SAMPLE) == {"reduce<Half>": names, "pack": {"ret": 1}}


def test_every_kernel_file_is_recorded() -> None:
    assert set(opcodes.units()) == RECORD.keys()


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed: nothing to compile with")
@pytest.mark.parametrize(("source", "target"), UNITS)
def test_the_compiler_emits_the_recorded_opcodes(source: str, target: str) -> None:
    if opcodes.compiler() != RELEASE:
        pytest.skip(f"recorded with nvcc {RELEASE}: another release emits other instructions")
    assert not opcodes.differences(source, target, RECORD[source, target])
