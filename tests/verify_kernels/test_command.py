"""``vllm-quant verify-kernels``, and what ``serve`` does before its first launch, with planted children on the CPU."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vllm_quant_kernels.cuda.verify import machine, proven, run, store
from vllm_quant_kernels.cuda.verify.machine import Gpu
from vllm_quant_plugin import cli
from vllm_quant_plugin.verify_kernels import proof
from vllm_quant_serve import kernel_proof
from vllm_quant_serve.supervise.report import Report

PLANTED = Path(__file__).resolve().parents[1] / "cuda" / "verify" / "planted.py"
GPU = Gpu(0, "GPU-11", "NVIDIA H100", "580.1", (9, 0))


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A machine with one H100 whose children do what the returned mapping says."""
    library, planted = tmp_path / "libvqp_cuda.so", dict[str, str]()
    library.write_bytes(b"code")
    monkeypatch.setenv("VQP_CUDA_LIBRARY", str(library))
    monkeypatch.setenv("VQP_VERDICTS", str(tmp_path / "verdicts"))
    monkeypatch.delenv("VQP_CUDA_KERNELS", raising=False)
    real = run.Verification

    def made(*arguments: Any, **options: Any) -> run.Verification:
        child = (sys.executable, "-S", str(PLANTED), json.dumps(planted), "--report", "{report}")
        return real(*arguments, **(options | {"child": child, "modules": ("os",)}))

    monkeypatch.setattr(proof, "Verification", made)
    monkeypatch.setattr(machine, "local_gpus", lambda: (GPU,))
    monkeypatch.setattr(proven, "refresh", machine.library_hash.cache_clear)
    machine.library_hash.cache_clear()
    yield planted
    machine.library_hash.cache_clear()


def command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(["verify-kernels", *words])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_without_a_gpu_one_line_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(machine, "local_gpus", lambda: ())
    code, out, err = command(capsys)
    assert (code, out) == (7, "")
    assert err == ("error: no NVIDIA GPU answers here: nothing was verified; "
                   "run it on the machine that will serve\n")  # fmt: skip
    assert command(capsys, "--forget")[0] == 7


def test_all_right(faults: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = command(capsys)
    assert code == 0
    assert "CUDA kernels on NVIDIA H100: 34 right; this project's kernels serve wna16-int4," in out.replace("\n", "")
    key = machine.key_of(GPU)
    assert key is not None
    verdict, _ = store.read(key)
    assert verdict is not None
    assert verdict.why_not("w8a8-fp8") is None
    code, out, _ = command(capsys, "--json")
    document = json.loads(out)
    assert code == 0
    assert document["speed"]["wna16-int4"]["faster"] == [1, 2048]
    assert document["key"]["gpu"] == "NVIDIA H100"
    assert Path(document["file"]).is_file()
    assert "1 verdict forgotten" in command(capsys, "--forget")[1]
    assert json.loads(command(capsys, "--forget", "--json")[1]) == {"gpu": "NVIDIA H100", "forgotten": []}


def test_a_family_that_is_not_right_is_exit_1_and_not_used(
    faults: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    faults |= {"wna16-int4-wide": "signal", "quantize": "wrong", "w8a8-fp8-wide": "absent"}
    code, out, _ = command(capsys, "--json")
    document = json.loads(out)
    assert code == 1
    assert document["summary"].startswith("CUDA kernels on NVIDIA H100: 31 right, 1 died, 1 wrong, 1 absent; ")
    assert "wna16-int4" not in document["speed"]
    assert "w8a8-fp8" not in document["speed"]
    assert document["speed"]["wna16-int8"]["serves"]


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--device", "1"], 2, "--device 1: there are 1 GPUs"),
        (["--device", "-1"], 2, "--device -1"),
        (["--seconds", "1"], 2, "--seconds 1 is too short"),
        (["--seconds", "nan"], 2, "--seconds nan is too short"),
        (["extra"], 2, "extra"),
    ],
)
def test_bad_input(
    faults: dict[str, str], words: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, _, err = command(capsys, *words)
    assert found == code
    assert text in err


def test_no_library_and_no_room(
    faults: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VQP_VERDICTS", str(tmp_path / "file" / "verdicts"))
    code, _, err = command(capsys)
    assert code == 8
    assert "cannot be written" in err
    assert err.count("\n") == 1
    monkeypatch.setenv("VQP_CUDA_LIBRARY", str(tmp_path / "nothing.so"))
    machine.library_hash.cache_clear()
    assert command(capsys)[0] == 7


def lines(capsys: pytest.CaptureFixture[str], *, made: bool = False) -> list[str]:
    assert kernel_proof.prove_kernels(Report(), seconds=60) is made
    return capsys.readouterr().out.splitlines()


def test_serve_verifies_once_per_model_of_gpu(faults: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    first = lines(capsys, made=True)
    assert first[0] == "verifying the CUDA kernels on NVIDIA H100, up to 60 s (no verdict on this GPU)"
    assert first[1].startswith("CUDA kernels on NVIDIA H100: 34 right; this project's kernels serve ")
    faults["pack"] = "signal"
    assert lines(capsys) == first[1:], "read, not made again"


def test_serve_says_it_once_and_starts_whatever_happens(
    faults: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VQP_VERDICTS", str(tmp_path / "file" / "verdicts"))
    assert "were not verified" in lines(capsys)[-1]
    monkeypatch.setenv("VQP_CUDA_KERNELS", "0")
    assert lines(capsys) == []
    monkeypatch.delenv("VQP_CUDA_KERNELS")
    monkeypatch.setattr(machine, "local_gpus", lambda: ())
    assert lines(capsys) == []


def test_a_verification_that_was_cut_off_is_not_repeated_by_serve(
    faults: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kernel that takes the whole machine down would else do so at every launch."""

    def gone(self: run.Verification) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run.Verification, "run", gone)
    with pytest.raises(KeyboardInterrupt):
        kernel_proof.prove_kernels(Report())
    capsys.readouterr()
    assert lines(capsys) == [
        "CUDA kernels on NVIDIA H100: 34 unfinished; vLLM's kernels serve; "
        "`vllm-quant verify-kernels` goes through all of it"
    ]


def test_a_good_verdict_stays_until_another_is_made(
    faults: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines(capsys, made=True)

    def gone(self: run.Verification) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run.Verification, "run", gone)
    with pytest.raises(KeyboardInterrupt):
        proof.make_verdict(GPU, 5)
    assert "34 right" in lines(capsys)[0]


def test_models_of_gpu_are_verified_one_by_one(
    faults: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "local_gpus", lambda: (GPU, replace(GPU, index=1), replace(GPU, index=2, name="L4")))
    said = [line for line in lines(capsys, made=True) if line.startswith("CUDA kernels on ")]
    assert [line.partition(":")[0] for line in said] == ["CUDA kernels on NVIDIA H100", "CUDA kernels on L4"]
