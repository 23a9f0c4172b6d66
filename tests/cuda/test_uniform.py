"""Undefined uniform registers are found. The first kernel is what ptxas 13.0 made of a cp.async with a cache policy."""

from __future__ import annotations

from tests.cuda import sass, uniform

HEADER = """
	.section	.text.{},"ax",@progbits
        /*0000*/                   LDC R1, c[0x0][0x28] ;
"""
DROPPED = """
        /*0a00*/                   LDGSTS.E.BYPASS.128 [R11+UR0], desc[UR1][R2.64], P0 ;
        /*0a10*/                   EXIT ;
"""
RIGHT = """
        /*0010*/                   ULDC.64 UR4, c[0x0][0x208] ;
        /*0020*/              @!P0 LDG.E R3, desc[UR4][R2.64] ;
        /*0030*/                   S2UR UR7, SR_CTAID.X ;
        /*0040*/                   UISETP.GE.AND UP0, UPT, UR7, UR4, UPT ;
        /*0050*/                   UIMAD.WIDE UR8, UR7, 0x4, UR4 ;
        /*0060*/                   R2UR UP1, UR12, R2 ;
        /*0070*/                   IMAD.U32 R4, RZ, RZ, UR9 ;
        /*0080*/                   UTMALDG.2D [UR12], [UR8] ;
        /*0090*/                   UMOV UR5, URZ ;
"""


def test_a_dropped_cache_policy_is_found() -> None:
    text = HEADER.format("right") + RIGHT + HEADER.format("dropped") + DROPPED
    (line,) = uniform.undefined(text)
    assert line.startswith("dropped: nothing writes UR0, UR1, read by LDGSTS")


def test_defined_registers_are_not_reported() -> None:
    assert uniform.undefined(HEADER.format("right") + RIGHT) == []


def test_a_read_by_the_only_writer_is_found() -> None:
    text = HEADER.format("self") + "        /*0010*/      UIADD3 UR4, UR6, 0x1, URZ ;\n"
    assert "UR6" in uniform.undefined(text)[0]


def test_no_kernel_takes_a_cache_policy() -> None:
    sources = [path for path in (sass.ROOT / "kernels").rglob("*") if path.suffix in {".h", ".cu"}]
    assert len(sources) > 20
    assert [path.name for path in sources if "createpolicy." in path.read_text()] == []
