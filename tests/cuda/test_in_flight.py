"""Registers that are touched too early, or that a thread no longer has, are found in machine code."""

from __future__ import annotations

from tests.cuda import in_flight

HEADER = '\n\t.section\t.text.kernel,"ax",@progbits\n'
PRODUCTS = """
        /*0010*/                   HGMMA.64x64x16.F32 R24, R152, gdesc[UR8], R24, gsb0 ;
        /*0020*/                   HGMMA.64x64x16.F32 R56, R156, gdesc[UR12], R56, gsb0 ;
"""
ONE_WAIT = "        /*0030*/                   WARPGROUP.DEPBAR.LE gsb0, 0x1 ;\n"


def instruction(text: str) -> str:
    return f"        /*0040*/                   {text} ;\n"


def test_what_the_wait_has_released_may_be_touched() -> None:
    for text in ("LOP3.LUT R152, R2, R3, R4, 0xea, !PT", "FFMA R2, R24, R3, R55", "LDGSTS.E [R2], desc[UR4][R156.64]"):
        assert in_flight.touched(HEADER + PRODUCTS + ONE_WAIT + instruction(text)) == []


def test_what_is_in_flight_may_not() -> None:
    for text in (
        "LOP3.LUT R159, R2, R3, R4, 0xea, !PT",
        "LDS.128 R156, [R2]",
        "@P0 FFMA R2, R56, R3, R4",
        "MOV R87, R1",
    ):
        (line,) = in_flight.touched(HEADER + PRODUCTS + ONE_WAIT + instruction(text))
        assert text in line
    assert in_flight.touched(HEADER + PRODUCTS + instruction("LOP3.LUT R152, R2, R3, R4, 0xea, !PT"))


def test_registers_that_were_given_back() -> None:
    text = """
        /*0010*/                   USETMAXREG.DEALLOC.CTAPOOL 0x28 ;
        /*0020*/              @!P0 BRA `(.L_x_2) ;
        /*0030*/                   MOV R39, R1 ;
        /*0040*/                   EXIT ;
.L_x_1:
        /*0050*/                   MOV R200, R1 ;
        /*0060*/                   EXIT ;
.L_x_2:
        /*0070*/                   {} ;
        /*0080*/                   EXIT ;
"""
    assert in_flight.beyond(HEADER + text.format("MOV R2, R3")) == []
    assert "R40" in in_flight.beyond(HEADER + text.format("MOV R2, R40"))[0]
