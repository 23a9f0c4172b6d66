"""What a verdict says, which kernel the registry chooses by it, and files that are none."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vllm_quant_kernels import registry
from vllm_quant_kernels.cuda.verify import machine, proven, store
from vllm_quant_kernels.cuda.verify.families import FAMILIES, SPEED_CLASSES, needs, speed_class
from vllm_quant_kernels.cuda.verify.machine import Gpu
from vllm_quant_kernels.cuda.verify.verdict import TIE, Finding, Speed, Timing, Verdict, VerdictError
from vllm_quant_kernels.kernel import Device
from vllm_quant_kernels.scheme import E4M3, PER_CHANNEL, ActivationScheme, Int, WeightScheme

HOPPER = Gpu(0, "GPU-11", "NVIDIA H100 80GB HBM3", "580.1", (9, 0))
ADA = Gpu(1, "GPU-22", "NVIDIA L40S", "580.1", (8, 9))
G128 = WeightScheme()
H100 = Device("cuda", (9, 0))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine with one H100, no verdict, and a library; the folder of its verdicts."""
    library = tmp_path / "libvqp_cuda.so"
    library.write_bytes(b"code")
    monkeypatch.setenv("VQP_CUDA_LIBRARY", str(library))
    monkeypatch.setenv("VQP_VERDICTS", str(tmp_path / "verdicts"))
    monkeypatch.delenv("VQP_CUDA_KERNELS", raising=False)
    machine.library_hash.cache_clear()
    proven._verdict.cache_clear()
    monkeypatch.setattr(machine, "local_gpus", lambda: (HOPPER,))
    yield tmp_path / "verdicts"
    machine.library_hash.cache_clear()
    proven._verdict.cache_clear()


def speed(ratios: dict[int, float], reason: str = "") -> Speed:
    return Speed(tuple(Timing(m, n, 64, 100 * r, 100, "marlin") for m, r in ratios.items() for n in (64, 128)), reason)


def verdict(gpu: Gpu = HOPPER, ratios: dict[int, float] | None = None, **families: str) -> Verdict:
    key = machine.key_of(gpu)
    assert key is not None
    found = dict.fromkeys(FAMILIES, Finding("right", "", 1.5))
    found |= {name.replace("_", "-"): Finding(status, "x") for name, status in families.items()}  # type: ignore[arg-type]
    return Verdict(
        key, "2026-11-28T08:00:00+00:00", found, {"wna16-int4": speed(ratios or {1: 0.6, 64: 0.9, 2048: 1.0})}
    )


def kernel(device: Device = H100, scheme: WeightScheme = G128) -> str:
    proven._verdict.cache_clear()
    return registry.choose(scheme, 256, 512, device).kernel.name


def why(device: Device = H100, scheme: WeightScheme = G128) -> str:
    proven._verdict.cache_clear()
    return registry.choose(scheme, 256, 512, device).reasons["cuda-wna16"]


@pytest.mark.parametrize(
    ("ratios", "reason"),
    [
        ({1: 0.6, 64: 0.9, 2048: TIE}, None),
        ({1: 0.6, 64: 0.9, 2048: TIE + 0.01}, r"slower than marlin at M = 2048 \(1.06x at 2048\)"),
        ({1: 1.3, 64: 1.2, 2048: 0.5}, r"slower than marlin at M = 1, 64 \(1.30x at 1\)"),
        ({1: 1.0, 64: 1.01, 2048: 1.0}, "not faster than marlin"),
        ({}, "not timed beside another kernel"),
    ],
)
def test_the_rule(ratios: dict[int, float], reason: str | None) -> None:
    found = speed(ratios).why_not()
    assert found is None if reason is None else found is not None
    if reason is not None:
        with pytest.raises(ValueError, match=reason):
            raise ValueError(found)


def test_what_was_not_timed_to_its_end_is_not_used() -> None:
    assert "its process died" in str(speed({1: 0.5}, "its process died").why_not())
    assert speed({1: 0.5, 8: 1.2, 64: 0.9, 128: 0.8, 512: 0.99}).faster() == (64, 512)
    assert speed({1: 1.0}).faster() is None
    slow_once = Speed((Timing(1, 1, 1, 4, 1, "a"), Timing(1, 2, 1, 1, 9, "a")))
    assert slow_once.ratios() == {1: pytest.approx(2 / 3)}


def test_what_a_layer_needs() -> None:
    assert needs("wna16-int4") == ("pack", "wna16-int4-narrow", "wna16-int4-wide")
    assert needs("w8a8-fp8-blocks") == ("quantize", "w8a8-fp8-blocks-narrow", "w8a8-fp8-blocks-wide")
    assert needs("w8a8-fp8") == ("quantize", "w8a8-fp8-narrow", "w8a8-fp8-fused", "w8a8-fp8-wide")
    assert needs("experts-int3") == ("pack", "experts-int3")
    fp8 = WeightScheme(E4M3, PER_CHANNEL, activation=ActivationScheme(E4M3))
    assert speed_class("cuda-w8a8", fp8) == "w8a8-fp8"
    assert speed_class("cuda-w8a8", replace(fp8, block=(128, 128), group_size=128)) == "w8a8-fp8-blocks"
    assert speed_class("cuda-w8a8", WeightScheme(Int(8), PER_CHANNEL)) == "w8a8-int8"
    assert speed_class("cuda-wna16", fp8) == "wna16-fp8"
    for timed in SPEED_CLASSES:
        assert len(needs(timed)) > 1, timed


def test_the_registry_reads_the_verdict(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert why() == "not proven: no verdict on this GPU; run vllm-quant verify-kernels"
    store.write(verdict())
    assert kernel() == "cuda-wna16"
    assert kernel(Device("cuda")) == "cuda-wna16", "the capability is not known: every GPU here has shown it"
    assert why(Device("cuda", (8, 9))) == "not proven: no such GPU is here"
    assert why(scheme=replace(G128, act_order=True)) == "not timed with act-order"
    assert "wna16-int8-narrow" not in why(scheme=WeightScheme(Int(8))), "that one is right, but was not timed"
    store.write(verdict(ratios={1: 0.5, 512: 2.0}))
    assert why() == "slower than marlin at M = 512 (2.00x at 512)"
    monkeypatch.setenv("VQP_CUDA_KERNELS", "1")
    assert kernel() == "cuda-wna16"
    monkeypatch.setenv("VQP_CUDA_KERNELS", "0")
    store.write(verdict())
    assert why() == "VQP_CUDA_KERNELS is 0"


@pytest.mark.parametrize("status", ["wrong", "hung", "died", "failed", "unfinished"])
@pytest.mark.parametrize("family", ["pack", "wna16_int4_narrow", "wna16_int4_wide"])
def test_no_kernel_with_a_family_that_is_not_right(here: Path, family: str, status: str) -> None:
    store.write(verdict(**{family: status}))
    assert why() == f"not proven: {family.replace('_', '-')}: {status} (x)"


def test_every_gpu_that_the_process_sees_must_agree(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(verdict())
    monkeypatch.setattr(machine, "local_gpus", lambda: (HOPPER, ADA, replace(HOPPER, index=2)))
    assert kernel(Device("cuda", (9, 0))) == "cuda-wna16"
    assert "no verdict" in why(Device("cuda"))
    store.write(verdict(ADA))
    assert kernel(Device("cuda")) == "cuda-wna16"


def test_a_stale_verdict_is_none_and_says_what_changed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(verdict())
    monkeypatch.setattr(machine, "local_gpus", lambda: (replace(HOPPER, driver="590.0"),))
    assert why() == "not proven: the verdict on this GPU is stale: another driver; run vllm-quant verify-kernels"
    monkeypatch.setattr(machine, "local_gpus", lambda: (HOPPER,))
    Path(os.environ["VQP_CUDA_LIBRARY"]).write_bytes(b"other code")
    machine.library_hash.cache_clear()
    assert "stale: another library" in why()
    Path(os.environ["VQP_CUDA_LIBRARY"]).unlink()
    machine.library_hash.cache_clear()
    assert "the CUDA library is not there" in why()


def changed(change: Any) -> Any:
    document = verdict().to_json()
    change(document)
    return document


HOSTILE: dict[str, Any] = {
    "empty": b"",
    "no JSON": b"{\x00",
    "no UTF-8": b"\xff\xfe{}",
    "deep": b"[" * 100_000,
    "long": b" " * (2 << 20),
    "a list": b"[]",
    "infinite": lambda d: d["speed"]["wna16-int4"]["timings"][0].update(ours=float("inf")),
    "nan": lambda d: d["speed"]["wna16-int4"]["timings"][0].update(theirs=float("nan")),
    "free": lambda d: d["speed"]["wna16-int4"]["timings"][0].update(ours=0),
    "true": lambda d: d["speed"]["wna16-int4"]["timings"][0].update(m=True),
    "timings": lambda d: d["speed"]["wna16-int4"].update(timings={}),
    "many": lambda d: d["speed"]["wna16-int4"].update(timings=d["speed"]["wna16-int4"]["timings"] * 100),
    "family": lambda d: d["families"].update(rm={"status": "right", "reason": "", "seconds": 1}),
    "status": lambda d: d["families"]["pack"].update(status="RIGHT"),
    "escape": lambda d: d["families"]["pack"].update(reason="\x1b]0;x\x07"),
    "lines": lambda d: d["families"]["pack"].update(reason="a\nb"),
    "format": lambda d: d.update(format=2),
    "no key": lambda d: d.pop("key"),
    "key": lambda d: d["key"].update(driver=5),
    "another GPU": lambda d: d["key"].update(gpu="NVIDIA H200"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_is_no_verdict_is_none(here: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    path, content = store.write(verdict()), HOSTILE[name]
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(changed(content)).encode())
    with caplog.at_level(logging.WARNING):
        assert why().startswith(f"not proven: {path} is no verdict: ")
        registry.choose(G128, 256, 512, Device("cuda", (9, 0)))
    assert len(caplog.records) == 1, "one line, once"
    assert "\n" not in caplog.records[0].getMessage()


def test_a_file_of_others_a_link_and_a_pipe_are_no_verdicts(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store.write(verdict())
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o666)
    assert "others can write" in why()
    path.chmod(0o600)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    if path.stat().st_uid:
        assert "others can write" in why()
    monkeypatch.undo()
    monkeypatch.setenv("VQP_VERDICTS", str(here))
    path.rename(here / "elsewhere")
    path.symlink_to(here / "elsewhere")
    assert "cannot be read" in store.read(verdict_key(path))[1]
    path.unlink()
    os.mkfifo(path)
    assert "no regular file" in store.read(verdict_key(path))[1], "a pipe that nobody writes does not block"


def verdict_key(path: Path) -> machine.Key:
    return Verdict.from_json(json.loads((path.parent / "elsewhere").read_text())).key


def test_a_verdict_is_written_whole_or_not_at_all(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = verdict()
    path = store.write(first)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="No space"):
        store.write(verdict(pack="wrong"))
    assert store.read(first.key) == (first, "")
    assert [p.name for p in here.iterdir()] == [path.name]


def test_forget_deletes_the_verdicts_of_one_model(here: Path) -> None:
    store.write(verdict())
    store.write(replace(verdict(), key=replace(verdict().key, driver="1")))
    kept = store.write(verdict(ADA))
    assert len(store.forget(HOPPER.name)) == 2
    assert list(here.iterdir()) == [kept]
    assert store.forget(HOPPER.name) == []


def test_json_round_trip_and_errors() -> None:
    with pytest.raises(VerdictError, match="the file is no object"):
        Verdict.from_json(None)
    assert Verdict.from_json({"format": 1, "key": dict.fromkeys(("gpu", "driver", "library", "vllm", "plugin"), "a"),
                              "date": "", "families": {}, "speed": {}}).why_not("wna16-int4")  # fmt: skip


def test_cuda_visible_devices() -> None:
    gpus = [HOPPER, ADA]
    assert machine.visible(gpus, None) == gpus
    assert machine.visible(gpus, "1,GPU-1") == [ADA, HOPPER]
    assert machine.visible(gpus, "") == machine.visible(gpus, "7,0") == []


def test_reading_a_verdict_needs_no_torch() -> None:
    code = (
        "import sys, vllm_quant_kernels.cuda.verify.run, vllm_quant_kernels.proof as p\n"
        "from vllm_quant_kernels.kernel import Device; from vllm_quant_kernels.scheme import WeightScheme as W\n"
        "print(p.refused('cuda-wna16', W(), Device('cuda')) is not None, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
