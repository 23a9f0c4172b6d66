"""benchmarks/gpu_engine.py without a GPU: its checkpoint, its jobs and reports, and a stand-in for the engine."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.support.benchmark_module import FOLDER, load
from vllm_quant_plugin.checkpoint import read_checkpoint
from vllm_quant_plugin.formats.registry import stored_model


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return load("gpu_engine")


def test_the_checkpoint_is_whole_and_gptqs(bench: ModuleType, tmp_path: Path) -> None:
    made = load("gpu_engine_checkpoint")
    shape = made.SHAPES["tiny"]
    quantized, dense = made.write(shape, tmp_path)
    checkpoint = read_checkpoint(quantized)
    model = stored_model(checkpoint)
    assert model is not None
    assert model.method == "gptq"
    names = {name for name, _ in checkpoint.modules()}
    assert len([name for name in names if name.endswith("_proj")]) == 7 * shape.layers
    files = sorted(path.name for path in quantized.glob("*.safetensors"))
    assert len(files) == shape.layers + 3, "a file a layer: never more than one layer in memory"
    assert files[-1].endswith(f"-of-{len(files):05}.safetensors")
    assert "quantization_config" not in json.loads((dense / "config.json").read_text())
    before = {path: path.stat().st_mtime_ns for path in quantized.iterdir()}
    made.write(shape, tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in quantized.iterdir()}


def test_the_large_shape_is_llama_3_8b(bench: ModuleType) -> None:
    made = load("gpu_engine_checkpoint")
    shape = made.SHAPES["llama3-8b"]
    layer = 4096 * (4096 + 2 * 1024 + 4096 + 3 * 14336)
    assert shape.layers * layer + 2 * shape.vocabulary * shape.hidden + 65 * 4096 == 8_030_261_248


class Engine:
    """Generates one token a tick of a clock that this test turns, and a prompt in a tick."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, int]] = []
        self.clock = 0.0

    def generate(self, prompts: list[dict[str, list[int]]], sampling: Any, use_tqdm: bool) -> list[Any]:
        length = len(prompts[0]["prompt_token_ids"])
        self.calls.append((len(prompts), length, sampling.max_tokens))
        self.clock += 0.5 + 0.01 * (sampling.max_tokens - 1)
        return []


def test_rates(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    monkeypatch.setattr(bench.time, "perf_counter", lambda: engine.clock)
    found = bench.rates(engine, lambda **options: SimpleNamespace(**options), 100)
    assert found["decode_1"] == pytest.approx(100), "the prompt's time does not count"
    assert found["decode_32"] == pytest.approx(3200)
    assert found["prefill"] == pytest.approx(2048 / 0.5)
    assert {call[0] for call in engine.calls} == {1, 32}


def test_prompts_are_in_the_vocabulary_and_differ(bench: ModuleType) -> None:
    given = [tuple(prompt["prompt_token_ids"]) for prompt in bench.prompts(32, 16, 1024)]
    assert len(set(given)) == 32
    assert all(2 <= token < 1024 for ids in given for token in ids)


def test_perplexity(bench: ModuleType) -> None:
    """Every token is one of four equally likely ones."""

    class Uniform:
        def generate(self, prompts: list[dict[str, list[int]]], sampling: Any, use_tqdm: bool) -> list[Any]:
            given = [prompt["prompt_token_ids"] for prompt in prompts]
            one = SimpleNamespace(logprob=-1.3862943611198906)
            return [SimpleNamespace(prompt_token_ids=ids, prompt_logprobs=[None, *({t: one} for t in ids[1:])])
                    for ids in given]  # fmt: skip

    tokenizer = SimpleNamespace(encode=lambda text, add_special_tokens: [ord(c) % 7 for c in text[:2000]])
    assert bench.perplexity(Uniform(), lambda **options: options, tokenizer) == pytest.approx(4)


def arguments(tmp_path: Path, **more: Any) -> argparse.Namespace:
    return argparse.Namespace(**{
        "parts": ["quality", "speed"], "prepared": tmp_path, "device": "cpu", "shape": "tiny", "work": tmp_path, **more
    })  # fmt: skip


def test_every_engine_and_what_it_is_compared_with(bench: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "perplexity.json").write_text('{"awq": 8.0, "fp8": 7.5}')
    jobs = bench.jobs(arguments(tmp_path), tmp_path / "log")
    assert [job["name"] for job in jobs] == [
        "adapter", "in-tree", "bf16", "ours", "awq adapter", "awq ours", "fp8 adapter", "fp8 ours"
    ]  # fmt: skip
    assert {job["environment"].get("VQP_CUDA_KERNELS") for job in jobs} == {None, "0", "1"}
    assert [job["options"].get("quantization") for job in jobs][3:] == [
        "vqp_gptq", "vqp_awq", "vqp_awq", "vqp_fp8", "vqp_fp8"
    ]  # fmt: skip
    job = jobs[-1]
    assert bench.judged(job, {"perplexity": 7.51})["right"]
    assert not bench.judged(job, {"perplexity": 7.7})["right"]
    assert not bench.judged(job, {"reason": "ended with 1"})["right"]
    rows = [bench.judged(job, {"perplexity": 9.0}), bench.judged(jobs[0], {"reason": "no time was left"})]
    assert bench.table(rows).splitlines()[0].endswith("perplexity 9.000, on the CPU 7.500  WRONG")
    assert bench.table(rows).splitlines()[1].endswith("not measured: no time was left")


def test_an_engine_that_fails_or_hangs_is_a_reason(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "child.py"
    monkeypatch.setattr(bench, "__file__", str(child))
    log = tmp_path / "log"
    log.touch()
    child.write_text("raise ValueError('no kernel')")
    found = bench.in_a_process({"name": "one"}, 60, log)
    assert found == {"reason": "ended with 1: ValueError: no kernel"}
    child.write_text("import time; time.sleep(60)")
    assert bench.in_a_process({"name": "two"}, 1, log) == {"reason": "no result within 1 s"}


@pytest.mark.nightly
@pytest.mark.engine
def test_a_rehearsal(tmp_path: Path) -> None:
    """All engines of the speed part on the CPU, with the tiny shape. In-tree GPTQ needs AVX-512 there."""
    target = tmp_path / "speed.json"
    command = [sys.executable, str(FOLDER / "gpu_engine.py"), "--device", "cpu", "--shape", "tiny", "--parts", "speed"]
    subprocess.run([*command, "--work", str(tmp_path), "--json", str(target)], check=True, timeout=500)
    rows = {row["name"]: row for row in json.loads(target.read_text())["rows"]}
    for name in ("adapter", "bf16", "ours"):
        assert min(rows[name][rate] for rate in ("decode_1", "decode_32", "prefill")) > 0
