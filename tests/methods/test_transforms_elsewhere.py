"""Checkpoints with transforms under a LoRA adapter, and on two ranks in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm.lora.request import LoRARequest

from tests.methods.test_lora import RANK, STEPS, ask, write_adapter
from tests.methods.test_transforms import EVERYWHERE
from tests.support.engines import Answer, engine
from tests.support.oracle import float32_tolerance, judge
from tests.support.recipes import compressed_tensors
from tests.support.tiny_models import tiny_model
from tests.support.transformed import Transformed, group, write_transformed

pytestmark = pytest.mark.engine

ROOT = Path(__file__).resolve().parents[2]
MODEL = tiny_model("llama")
W8A16 = compressed_tensors("int-quantized")
# Of blocks that a rank holds whole: inputs that are split, heads, columns of a fused layer.
SPLIT = {name: EVERYWHERE[name] for name in ("R3", "heads", "values", "gate")} | {
    "R4": group(
        "hadamard", ("input", False, "re:.*down_proj$"), ("weight_input", True, "re:.*down_proj$"), head_dim=64
    ),
}


def _adapt(module: torch.nn.Module, product: torch.Tensor) -> None:
    """As PEFT: the adapter reads what the layer is given and adds to what it returns, transforms and all."""
    given: list[torch.Tensor] = []
    module.register_forward_pre_hook(lambda _, x: given.append(x[0]), prepend=True)
    module.register_forward_hook(lambda _, x, y: y + given.pop() @ product.T)


def worst(logits: list[torch.Tensor], written: Transformed, tokens: list[list[int]]) -> tuple[float, float]:
    """The largest difference from the library's logits, and what float32 allows."""
    expected = written.answer(tokens)
    found = max(float((a - b[-STEPS:]).abs().max()) for a, b in zip(logits, expected.logits, strict=True))
    return found, float32_tolerance(expected.scale())


def test_adapter(tmp_path: Path) -> None:
    """The transforms touch the base alone: of inputs, outputs, queries and keys, of parts of fused layers apart."""
    groups = {name: EVERYWHERE[name] for name in ("R3", "R4", "values", "heads", "gate", "whole")}
    written = write_transformed(tmp_path / "model", MODEL, groups, W8A16)
    added = write_adapter(tmp_path / "adapter", MODEL)
    with engine(written.folder, enable_lora=True, max_lora_rank=RANK) as llm:
        base, base_logits = ask(llm)
        adapted, adapted_logits = ask(llm, lora_request=LoRARequest("a", 1, str(tmp_path / "adapter")))
    difference, allowed = worst(base_logits, written, base)
    assert difference <= allowed
    assert worst(adapted_logits, written, adapted)[0] > 100 * allowed
    model: Any = written.model
    for name, module in model.named_modules():
        if f"{name}.weight" in added:
            _adapt(module, added[f"{name}.weight"].double())
    difference, allowed = worst(adapted_logits, written, adapted)
    assert difference <= allowed


def test_two_ranks(tmp_path: Path) -> None:
    """Each rank transforms its own share of an input and its own heads; stored matrices are whole on both."""
    written = write_transformed(tmp_path, MODEL, SPLIT, W8A16)
    environment = os.environ | {
        "VLLM_CPU_OMP_THREADS_BIND": "0|1" if (os.cpu_count() or 1) > 1 else "0|0",
        "OMP_NUM_THREADS": "1",
        "TORCHDYNAMO_DISABLE": "1",
    }
    command = [sys.executable, "-m", "tests.support.ask_two_ranks", "{}", str(written.folder)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    stored = torch.load(written.folder / "answer.pt", weights_only=True)
    got = Answer(stored["tokens"], stored["logits"])
    verdict = judge(got, written.answer(got.tokens))
    assert verdict.clean == 1
    assert verdict.same_choice
