"""Verification with planted faults: whatever a child does, it is never taken for right, and costs only itself."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vllm_quant_kernels.cuda.verify.families import FAMILIES
from vllm_quant_kernels.cuda.verify.machine import Gpu, Key
from vllm_quant_kernels.cuda.verify.process import Ended, run_child
from vllm_quant_kernels.cuda.verify.run import Verification, finding_of
from vllm_quant_kernels.cuda.verify.verdict import Verdict

FOLDER = Path(__file__).parent
GPU = Gpu(0, "GPU-1", "NVIDIA H100", "580.1", (9, 0))
KEY = Key("NVIDIA H100", "580.1", "abc", "0.33.0", "1.0")
INT4 = ("pack", "wna16-int4-narrow", "wna16-int4-wide")


def verify(faults: dict[str, str], families: tuple[str, ...] = INT4, seconds: float = 60, **more: Any) -> Verdict:
    child = (sys.executable, "-S", str(FOLDER / "planted.py"), json.dumps(faults), "--report", "{report}")
    more = {"classes": ("wna16-int4",), "family_seconds": 30, **more}
    return Verification(GPU, KEY, seconds, child, families=families, **more).run()


def test_without_a_fault_ours_serve() -> None:
    said: list[str] = []
    found = verify({}, found=lambda name, finding: said.append(name))
    assert {name: finding.status for name, finding in found.families.items()} == dict.fromkeys(INT4, "right")
    assert sorted(said) == sorted(INT4)
    assert found.key == KEY
    assert found.why_not("wna16-int4") is None
    assert found.speed["wna16-int4"].faster() == (1, 2048)
    assert found.why_not("wna16-int8") == "wna16-int8-narrow: unfinished (not checked)"


@pytest.mark.parametrize(
    ("fault", "status", "reason"),
    [
        ("signal", "died", "signal 11: a library prints this at: wna16-int4-wide begins"),
        ("garbage", "failed", "something else than results"),
        ("flood", "failed", "something else than results"),
        ("list", "failed", "something else than results"),
        ("silence", "failed", "its process ended with 0"),
        ("right, then dies", "died", "signal 6"),
        ("right, then fails", "failed", "its process ended with 3"),
        ("wrong", "wrong", "for this  [31mreason "),
        ("died", "died", "for this"),
        ("unfinished", "unfinished", "for this"),
        ("perfect", "failed", "its process ended with 0"),
    ],
)
def test_a_family_with_a_fault_is_not_used(fault: str, status: str, reason: str) -> None:
    found = verify({"wna16-int4-wide": fault})
    finding = found.families["wna16-int4-wide"]
    assert finding.status == status
    assert reason in finding.reason
    assert finding.reason.isprintable()
    assert found.families["wna16-int4-narrow"].status == "right"
    assert "wna16-int4-wide" in str(found.why_not("wna16-int4"))
    assert found.speed == {}, "what is not right is not timed"
    assert Verdict.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize("fault", ["hang", "deaf hang"])
def test_a_child_that_hangs_is_killed_with_what_it_started(fault: str) -> None:
    found = verify({"wna16-int4-wide": fault}, family_seconds=1)
    finding = found.families["wna16-int4-wide"]
    assert (finding.status, finding.reason) == ("hung", "no answer within 1 s at: wna16-int4-wide begins")
    assert found.families["pack"].status == "right"


def test_nothing_is_run_on_a_gpu_that_no_longer_answers() -> None:
    names = ("pack", "wna16-int4-narrow", "wna16-int4-wide")
    found = verify({"pack": "signal", "alive": "signal"}, names, at_once=1)
    assert [found.families[name].status for name in names] == ["died", "unfinished", "unfinished"]
    assert found.families["wna16-int4-wide"].reason == "the GPU no longer answered"


def test_time_is_bounded() -> None:
    names = tuple(FAMILIES)
    begin = time.monotonic()
    found = verify(dict.fromkeys(names, "hang"), names, seconds=2)
    assert time.monotonic() - begin < 60, "each alone may take 30 seconds"
    assert {finding.status for finding in found.families.values()} == {"unfinished"}


def test_a_wide_family_may_be_absent_and_no_other() -> None:
    assert verify({"wna16-int4-wide": "absent"}).why_not("wna16-int4") is None
    assert "narrow: absent" in str(verify({"wna16-int4-narrow": "absent"}).why_not("wna16-int4"))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("signal", "signal 11"),
        ("garbage", "something else"),
        ("bad timing", "a timing that is none"),
        ("cannot", "no kernel"),
        ("slow", "slower than marlin"),
    ],
)
def test_what_cannot_be_timed_is_not_used_and_the_others_are(fault: str, reason: str) -> None:
    families = ("pack", *(f"wna16-int{bits}-{part}" for bits in (4, 8) for part in ("narrow", "wide")))
    found = verify({"wna16-int4": fault}, families, classes=("wna16-int4", "wna16-int8"), modules=("os",))
    assert reason in str(found.why_not("wna16-int4"))
    assert found.why_not("wna16-int8") is None


def test_a_program_that_is_not_there_is_one_more_way_to_fail() -> None:
    ended = run_child(["/nowhere/python", "{report}"], 5, lambda line: None, {})
    assert (ended.how, ended.code) == ("exited", 127)
    assert finding_of(ended, {"status": "right"}, 5, 0.1).status == "failed"
    assert finding_of(Ended("stuck"), {"status": "right"}, 5, 0.1).status == "died"


def test_the_real_child_finds_wrong_numbers() -> None:
    """On the CPU, where the operators are their references, with one wrong element."""
    child = (sys.executable, str(FOLDER / "wrong_numbers.py"), "--device", "cpu", "--report", "{report}")
    found = Verification(GPU, KEY, 300, child, families=("pack", "wna16-int4-narrow"), classes=()).run()
    assert found.families["pack"].status == "right"
    finding = found.families["wna16-int4-narrow"]
    assert finding.status == "wrong"
    assert "one-hot activations, 8 rows" in finding.reason
