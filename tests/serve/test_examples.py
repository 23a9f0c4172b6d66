"""The demo and the examples, run as a user runs them, on the bundled model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from safetensors.torch import load_file

import vllm_quant_plugin
from tests.support.quantized_checkpoints import write_checkpoint
from tests.support.recipes import gptq
from tests.support.supervised import can_bind, free_port
from tests.support.tiny_models import TinyModel

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]
BUNDLED = Path(vllm_quant_plugin.__file__).parent / "data" / "stdlib-llama"
SMALL = ["--max-model-len", "256", "--max-num-seqs", "8", "--enforce-eager"]
# conftest.py makes engines run in the test's own process; a server's must not.
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"},
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}


def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(words, cwd=ROOT, env={**ENVIRONMENT, **variables}, capture_output=True, text=True)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr[-4000:]}"
    return result


def test_demo(tmp_path: Path) -> None:
    figures = json.loads(run("vllm-quant", "demo", "--json", "-o", str(tmp_path)).stdout)
    base = figures["original"]
    awq, int8 = figures["quantized"]
    assert awq["nbytes"] < int8["nbytes"] < base["nbytes"]
    for text, perplexity in base["perplexity"].items():
        assert int8["perplexity"][text] == pytest.approx(perplexity, rel=0.02)
        assert awq["perplexity"][text] == pytest.approx(perplexity, rel=0.10)
        assert int8["kl"][text] < awq["kl"][text]
    served = figures["served"]
    assert len(served["completions"]) == 8
    assert all(one["tokens"] > 0 for one in served["completions"])
    assert served["tokens_per_second"] > 0
    assert served["exit_code"] == 0
    info = next(line for line in served["metrics"] if line.startswith("vqp_quantization_info"))
    assert 'method="vqp_awq"' in info
    assert "--quantization vqp_awq" in served["command"]


@pytest.mark.nightly  # the program below takes the same path
def test_quantize_then_serve_script(tmp_path: Path) -> None:
    port = free_port()
    script = str(ROOT / "examples" / "quantize_then_serve.sh")
    done = run("bash", script, str(BUNDLED), str(tmp_path / "m"), "int8", PORT=str(port), SERVE_FLAGS=" ".join(SMALL))
    answer = next(json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"id"'))
    assert answer["usage"]["completion_tokens"] > 0
    assert 'vqp_weight_bits{model_name="quantized"} 8.0' in done.stdout
    assert can_bind(port), "the server is gone"


def test_quantize_then_serve_program(tmp_path: Path) -> None:
    program = str(ROOT / "examples" / "quantize_then_serve.py")
    done = run(sys.executable, program, str(BUNDLED), str(tmp_path / "m"), "--method", "fp8", *SMALL)
    assert "tokens/s" in done.stdout
    assert "every request in flight was answered" in done.stdout


def three_bit_gptq(folder: Path) -> Path:
    """The bundled model as a GPTQ checkpoint that vLLM itself does not serve, rounded to nearest."""
    tensors = {name: tensor.float() for name, tensor in load_file(BUNDLED / "model.safetensors").items()}
    linears = tuple(n.removesuffix(".weight") for n, t in tensors.items() if ".layers." in n and t.dim() == 2)
    config = json.loads((BUNDLED / "config.json").read_text())
    written = write_checkpoint(folder, TinyModel(config, tensors, linears), gptq(3, 128)).folder
    for tokenizer in BUNDLED.glob("tokenizer*"):
        shutil.copy(tokenizer, written)
    return written


def test_bare_vllm_with_a_flag(tmp_path: Path) -> None:
    model, port = str(three_bit_gptq(tmp_path)), free_port()
    script = str(ROOT / "examples" / "vllm_serve_flags.sh")
    # Without a plan vLLM takes most of the host's memory for the cache. bash's exec makes the process vLLM itself.
    small = [*SMALL, "--kv-cache-memory-bytes", "64M"]
    process = subprocess.Popen(
        ["bash", script, model, "--port", str(port), "--served-model-name", "m", *small],
        cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "Application startup complete" in line:
                break
        else:
            raise AssertionError("".join(lines[-200:]))
        threading.Thread(target=process.stdout.read, daemon=True).start()
        body = {"model": "m", "prompt": "import os", "max_tokens": 8}
        # The line above is printed just before the socket listens.
        transport = httpx.HTTPTransport(retries=8)
        with httpx.Client(transport=transport) as client:
            answer = client.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=60).json()
        assert answer["usage"]["completion_tokens"] > 0
        metrics = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=60).text
        assert 'vqp_weight_bits{model_name="m"} 3.0' in metrics
        assert "plan" not in "".join(line for line in metrics.splitlines() if line.startswith("vqp_"))
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
