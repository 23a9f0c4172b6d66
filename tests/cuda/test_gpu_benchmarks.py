"""The parts of the weight-only GPU benchmarks that need no GPU: experts' peers, plans, results and their tables."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.cuda import emulated
from tests.support.benchmark_module import load
from vllm_quant_kernels.cuda.library import Linear

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return load("gpu_experts")


@pytest.mark.parametrize("m", [1, 9])
def test_the_peers_compute_the_layer(bench: ModuleType, m: int) -> None:
    """Ours by the operator's CPU implementation, the loop as it is; several copies, and what cannot run says why."""
    case = bench.Case("toy", m, 128, 96, 5, 2)
    mixture = bench.random_mixture(case, "cpu")
    x = torch.randn(m, 128).bfloat16()
    expected = bench.exact(mixture, x)
    plain = torch.zeros(m, 128, dtype=torch.float64)
    for token in range(m):
        for weight, e in zip(mixture.weights[token].double(), mixture.ids[token].tolist(), strict=True):
            gate, up = (mixture.w13[e].dequantize(torch.float64) @ x[token].double()).chunk(2)
            inner = torch.nn.functional.silu(gate) * up
            plain[token] += weight * (mixture.w2[e].dequantize(torch.float64) @ inner)
    assert torch.allclose(expected, plain)
    for peer in bench.gpu_experts_peers.PEERS[:2]:
        runners, error = bench.checked(peer, mixture, 3, x, expected)
        assert len(runners) == 3
        assert 0 < error < peer.tolerance
        assert torch.equal(runners[0](x), runners[1](x))
    with pytest.raises((ImportError, AttributeError)):
        bench.checked(bench.gpu_experts_peers.PEERS[2], mixture, 2, x, expected)


def test_a_wrong_result_is_not_timed(bench: ModuleType) -> None:
    mixture, x = bench.random_mixture(bench.Case("toy", 4, 128, 96, 5, 2), "cpu"), torch.randn(4, 128).bfloat16()

    class Wrong(bench.gpu_experts_peers.Loop):  # type: ignore[name-defined,misc]
        def copies(self, *arguments: Any) -> Any:
            right = super().copies(*arguments)
            return [*right[:-1], lambda x: right[0](x) * 1.1]

    with pytest.raises(ValueError, match="relative error"):
        bench.checked(Wrong(), mixture, 2, x, bench.exact(mixture, x))


def test_copies_are_in_memory_of_their_own(bench: ModuleType) -> None:
    weights = bench.random_weights(3, 32, 128, "cpu", 0)
    peers = bench.gpu_experts_peers
    stack = peers.stack_cuda([peers.pack_cuda(w) for w in weights])
    moved = peers.rolled(stack, 1)
    assert moved.data.data_ptr() != stack.data.data_ptr()
    assert torch.equal(moved.data[1], stack.data[0])
    assert torch.equal(moved.scales[0], stack.scales[2])
    assert bench.copies_for(60 << 20, 60 << 20) == 5
    assert bench.copies_for(1 << 40, 60 << 20) == 2


def test_the_cases_are_the_models(bench: ModuleType) -> None:
    cases = {case.name: case for case in bench.cases()}
    assert {(case.model, case.m) for case in cases.values()} == {
        (model, m) for model in ("mixtral-8x7b", "qwen3-30b-a3b") for m in (1, 8, 64, 512)
    }
    mixtral = cases["mixtral-8x7b-1"]
    assert mixtral.expert_bytes == 3 * 4096 * 14336 // 2 + 3 * 4096 * 14336 // 64
    assert mixtral.flops == 2 * 2 * 3 * 4096 * 14336
    assert mixtral.bytes(2) > 2 * mixtral.expert_bytes


def call_of(m: int, n: int, k: int) -> Linear:
    return Linear(
        m=m, n=n, k=k, k_padded=k, x_stride=k, groups=k // 128, group_size=128, kind=4, x_dtype=1, scale_dtype=2,
        zero_dtype=4, bias_dtype=4,
    )  # fmt: skip


@pytest.mark.parametrize("m", [1, 16, 33, 64, 2048])
def test_the_chosen_plan_is_among_the_timed_ones(m: int) -> None:
    plans = load("gpu_plans")
    call = call_of(m, 4096, 4096)
    chosen = emulated.make_plan(call, emulated.H200)
    names = set(plans.alternatives(m, 4096))
    assert (chosen.tokens, chosen.splits) in names
    assert {splits for _, splits in names} == set(range(1, 9))
    plan = emulated.make_plan(call, emulated.A100, 64)
    assert plans.with_splits(plan, 3, 4096, False).workspace_bytes == 3 * plan.m_tiles * 64 * 4096 * 4
    assert plans.with_splits(plan, 3, 4096, True).workspace_bytes == 0


def result_of(times: dict[str, float]) -> dict[str, Any]:
    return {name: {"us": us, "copy_share": 0.5, "tflops": 1.0, "relative_error": 0.0} for name, us in times.items()}


HEAD = {"gpu": "G", "torch": "2", "date": "d", "copy_bandwidth": 4e12, "dense_bf16_rate": 7e14}


def test_results_are_written_after_every_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a benchmark that is cut short has measured is there; a case that fails costs the others nothing."""
    linear, target = load("gpu_linear"), tmp_path / "r.json"
    cases, written = [linear.Case(name, 1, 8, 8) for name in ("one", "two", "three")], []

    def measure_one(case: Any) -> dict[str, Any]:
        written.append(len(json.loads(target.read_text())["cases"]) if target.exists() else 0)
        if case.name == "two":
            raise RuntimeError("an illegal memory access\nand more")
        return {"case": case.name, "results": result_of({"vqp": 1.0}), "absent": {"marlin": "no vllm"}}

    linear.measure_all(cases, measure_one, dict(HEAD), target, time.monotonic() + 60)
    rows = json.loads(target.read_text())["cases"]
    assert written == [0, 1, 2]
    assert [row["case"] for row in rows] == ["one", "two", "three"]
    assert rows[1]["error"] == "an illegal memory access"
    assert "absent in some or all cases: marlin: no vllm" in capsys.readouterr().out
    linear.measure_all(cases, measure_one, dict(HEAD), target, time.monotonic() - 1)
    assert "no time left: one" in capsys.readouterr().out


def test_results_are_rendered_into_the_document(tmp_path: Path) -> None:
    shape = {"m": 1, "n": 8192, "k": 4096, "bits": 4, "group_size": 128}
    linear = [
        {"case": "a", **shape, "results": result_of({"vqp": 10.0, "vqp-no-pdl": 11.0, "marlin": 20.0, "dense": 50.0})},
        {"case": "b", **shape, "results": result_of({"vqp": 10.0, "marlin": 5.0})},
        {"case": "c", **shape, "results": {}, "absent": {"vqp": "ValueError: wrong"}},
    ]
    expert = {"model": "mixtral", "m": 8, "experts": 8, "experts_used": 7, "case": "mixtral-8"}
    plan = {"case": "p", "chosen": "8x4", "best": "8x3", "results": result_of({"8x4": 12.0, "8x3": 10.0})}
    files = {
        "linear": linear,
        "experts": [{**expert, "results": result_of({"vqp": 10.0, "torch-loop": 15.0})}],
        "plans": [{**plan, "absent": {}}],
        "w8a8": [{"kind": "int8", "results": {}}],
    }
    document = tmp_path / "performance.md"
    document.write_text((ROOT / "docs" / "results" / "performance.md").read_text())
    for name, rows in files.items():
        extra = {"quantization": []} if name == "w8a8" else {}
        (tmp_path / f"{name}.json").write_text(json.dumps({**HEAD, **extra, "cases": rows}))
    command = [sys.executable, str(FOLDER / "gpu_render.py"), *(str(tmp_path / f"{name}.json") for name in files)]
    subprocess.run([*command, "--write", str(document)], check=True)
    text = document.read_text()
    assert "| a | 1 | 8192 x 4096 | 4, 128 | 10.0 | 50% | 1 | 11.0 | 20.0 (marlin) | 2.00x |" in text
    assert "where both ran: dense 5.00x, marlin 1.00x." in text
    assert "- c: not measured: ValueError: wrong" in text
    assert "| mixtral | 8 | 7 of 8 | 10.0 | 50% | 1 | 15.0 (torch-loop) | 1.50x |" in text
    assert "| p | 8x4 | 12.0 | 8x3 | 10.0 | 1.20 |" in text
    for section in ("linear", "experts", "plans"):
        part = text.partition(f"<!-- gpu {section}: begin -->")[2].partition(f"<!-- gpu {section}: end -->")[0]
        assert part.startswith("\nG, torch 2, d; copy 4.00 TB/s, dense BF16 700 TFLOP/s.")
    document.write_text("no markers")
    assert subprocess.run([*command, "--write", str(document)], capture_output=True, check=False).returncode == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.parametrize("name", ["gpu_linear", "gpu_experts", "gpu_plans"])
def test_without_a_gpu_one_line_says_so(name: str) -> None:
    result = subprocess.run([sys.executable, str(FOLDER / f"{name}.py")], capture_output=True, text=True, check=False)
    assert result.returncode == 69
    assert result.stderr == f"{name}: no NVIDIA GPU here: nothing was measured\n"
