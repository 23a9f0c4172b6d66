"""LoRA adapters on a quantized base: the adapter's product is added to the base's, whatever the method."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from vllm import SamplingParams
from vllm.lora.request import LoRARequest

from tests.support.engines import PROMPTS, engine
from tests.support.matrix import CELLS, Cell
from tests.support.oracle import Oracle, float32_tolerance
from tests.support.quantized_checkpoints import write_checkpoint
from tests.support.tiny_models import TinyModel, tiny_model

pytestmark = pytest.mark.engine

RANK, ALPHA, STEPS = 8, 16, 6
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MODEL = tiny_model("llama")
BY_NAME = {cell.name: cell for cell in CELLS}


def write_adapter(folder: Path, model: TinyModel, seed: int = 3) -> dict[str, torch.Tensor]:
    """A random adapter of every linear layer as PEFT stores it; returns what it adds to each weight."""
    generator = torch.Generator().manual_seed(seed)
    stored, added = {}, {}
    for name in model.linears:
        n, k = model.tensors[f"{name}.weight"].shape
        a = torch.randn(RANK, k, generator=generator) / k**0.5
        b = torch.randn(n, RANK, generator=generator) / RANK**0.5 / 4
        stored[f"base_model.model.{name}.lora_A.weight"], stored[f"base_model.model.{name}.lora_B.weight"] = a, b
        added[f"{name}.weight"] = ALPHA / RANK * (b @ a)
    folder.mkdir()
    save_file(stored, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": list(TARGETS), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return added


def ask(llm: Any, **options: Any) -> tuple[list[list[int]], list[torch.Tensor]]:
    """Greedy tokens and the logits of each, (STEPS, V) per prompt. vLLM has no logits of prompts with adapters."""
    sampling = SamplingParams(temperature=0, max_tokens=STEPS, logprobs=-1, ignore_eos=True, detokenize=False)
    with torch.compiler.set_stance("force_eager"):
        outputs = llm.generate([{"prompt_token_ids": p} for p in PROMPTS], sampling, use_tqdm=False, **options)
    done = [output.outputs[0] for output in outputs]
    rows = [[[step[token].logprob for token in range(len(step))] for step in one.logprobs] for one in done]
    return [list(one.token_ids) for one in done], [torch.tensor(row) for row in rows]


def worst(logits: list[torch.Tensor], oracle: Oracle, tokens: list[list[int]]) -> tuple[float, float]:
    """The largest difference from the oracle's logits of ``tokens``, and what float32 allows."""
    expected = oracle.answer(tokens)
    found = max(float((a - b[-STEPS:]).abs().max()) for a, b in zip(logits, expected.logits, strict=True))
    return found, float32_tolerance(expected.scale())


@pytest.mark.parametrize("name", ["awq-4bit-g128", "gptq-act-order-apart", "fp8-block-128", "int8-w8a16"])
def test_adapter_on_a_quantized_base(name: str, tmp_path: Path) -> None:
    """With the adapter: the dequantized model with the adapter's product added to its weights. Without: the base."""
    cell: Cell = BY_NAME[name]
    written = write_checkpoint(tmp_path / "model", MODEL, cell.recipe)
    added = write_adapter(tmp_path / "adapter", MODEL)
    with engine(written.folder, **cell.engine_options(), enable_lora=True, max_lora_rank=RANK) as llm:
        base, base_logits = ask(llm)
        adapted, adapted_logits = ask(llm, lora_request=LoRARequest("a", 1, str(tmp_path / "adapter")))
    plain = Oracle(MODEL, written)
    dense = {key: t.double() + added[key].double() if key in added else t for key, t in written.dense.items()}
    merged = Oracle(MODEL, replace(written, dense=dense))
    difference, allowed = worst(base_logits, plain, base)
    assert difference <= allowed
    difference, allowed = worst(adapted_logits, merged, adapted)
    assert difference <= allowed
    assert worst(adapted_logits, plain, adapted)[0] > 100 * allowed
