"""What runs beside the 8-bit kernels, without a GPU: torch's side of the table, and the benchmark's own arithmetic."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cuda.test_w8a8 import activations, weight
from tests.support.benchmark_module import load
from vllm_quant_kernels.cuda.w8a8 import activation
from vllm_quant_kernels.cuda.w8a8 import torch_gemm as w8a8_torch
from vllm_quant_kernels.cuda.w8a8.weight import product

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_sums_by_torch(kind: str) -> None:
    w, x = weight(48, 64, kind), activations(20, 64, torch.bfloat16, 1)
    a = activation.quantize(x, w.kind)
    sums = w8a8_torch.cublaslt_sums(a.q, w.codes, True)
    assert sums.dtype == (torch.int32 if kind == "int8" else torch.float32)
    exact = a.q.double() @ w.codes.double().T
    assert ((sums.double() - exact).abs() <= 2.0**-18 * exact.abs().max()).all()


@pytest.mark.parametrize("static", [False, True])
def test_rowwise_by_torch(static: bool) -> None:
    w, x = weight(48, 64, "fp8"), activations(20, 64, torch.bfloat16, 2)
    bias, out = torch.randn(48), torch.empty(20, 48, dtype=torch.bfloat16)
    a = activation.quantize(x, w.kind, in_scale=torch.tensor([0.1]) if static else None)
    result = w8a8_torch.rowwise(a, w, bias, out, True)
    assert result.data_ptr() == out.data_ptr()
    expected = product(a, w, bias)
    assert ((out.float() - expected).abs() <= 2.0**-6 * expected.abs() + 0.02).all()


def result_of(times: dict[str, float]) -> dict[str, Any]:
    return {
        name: {"us": us, "us_low": us, "us_high": us, "copy_share": 0.5, "tflops": 1.0} for name, us in times.items()
    }


def test_the_suggested_table_takes_the_fastest_and_joins_neighbours() -> None:
    bench = load("gpu_w8a8")
    case = {"kind": "int8", "mode": "linear", "n": 64, "k": 64}
    rows = [
        {**case, "m": 1, "results": result_of({"vqp-fused": 1, "vqp-own": 2, "vllm-cutlass": 0.5})},
        {**case, "m": 8, "results": result_of({"vqp-fused": 3, "vqp-own": 4})},
        {**case, "m": 64, "results": result_of({"vqp-own": 4, "vqp-cublaslt": 4.5})},
        {**case, "m": 64, "results": result_of({"vqp-own": 9, "vqp-cublaslt": 5})},
        {**case, "m": 64, "mode": "gemm", "results": result_of({"vqp-own": 1})},
    ]
    assert bench.suggested_table(rows) == {"int8": [(8, "fused"), (64, "cublaslt")]}


def test_results_are_rendered_into_the_document(tmp_path: Path) -> None:
    case = {"kind": "fp8", "mode": "linear", "m": 16, "n": 8192, "k": 8192}
    result = {
        "gpu": "G", "torch": "2", "date": "d", "copy_bandwidth": 4e12, "dense_bf16_rate": 7e14,
        "cases": [{**case, "results": result_of({"vqp": 20.0, "vllm-cutlass": 30.0, "torch-bf16": 50.0})}],
        "quantization": [{"scheme": "int8", "m": 1, "k": 2048, "us": {"vqp": 1.0}, "share": {"vqp": 0.9}}],
    }  # fmt: skip
    source, document = tmp_path / "r.json", tmp_path / "performance.md"
    source.write_text(json.dumps(result))
    document.write_text((ROOT / "docs" / "results" / "performance.md").read_text())
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "gpu_w8a8.py"),
        "--render",
        str(source),
        "--write",
        str(document),
    ]
    subprocess.run(command, check=True)
    text = document.read_text()
    assert "| fp8 | linear | 16 | 8192 x 8192 | 20.0 (1) | 30.0 (vllm-cutlass) | 1.50x |" in text
    assert "| int8 | 2048 | 90% | absent |" in text
    assert "Not measured" not in text


def test_the_server_benchmark_counts_equal_tokens_and_names_its_servers() -> None:
    bench = load("gpu_serve")
    assert bench.agreement([["a", "b", "x"], ["a", "c", "b"]], [["a", "b", "c"], ["a", "b", "b"]]) == 0.5
    names = [server.name for server in bench.servers("m", {"awq": Path("p")})]
    assert names[0] == "bf16"
    assert {"vqp_int8 online", "vqp_fp8 online", "vqp_awq", "in-tree awq"} <= set(names)
    assert all(("VQP_CUDA_KERNELS" in s.environment) == s.name.startswith("vqp") for s in bench.servers("m", {}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.parametrize("script", [["gpu_w8a8.py"], ["gpu_serve.py", "model"]])
def test_without_a_gpu_one_line_says_so(script: list[str]) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / script[0]), *script[1:]]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 69
    assert result.stderr.count("\n") == 1
    assert "no NVIDIA GPU here" in result.stderr
