"""The GPU's 8-bit segments inside a real engine, through the operators' CPU implementations: compiled, with LoRA."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm.lora.request import LoRARequest

from tests.methods.test_lora import MODEL, RANK, ask, write_adapter
from tests.support.engines import engine
from tests.support.matrix import CELLS
from tests.support.oracle import Oracle
from tests.support.quantized_checkpoints import write_checkpoint
from vllm_quant_kernels.cuda.kernels import CudaW8A8
from vllm_quant_kernels.cuda.w8a8 import native as w8a8_native
from vllm_quant_kernels.kernel import Packed
from vllm_quant_plugin.methods import kernel

pytestmark = pytest.mark.engine
BY_NAME = {cell.name: cell for cell in CELLS}


def distance(logits: list[torch.Tensor], oracle: Oracle, tokens: list[list[int]]) -> float:
    """The root mean square of the difference from the oracle's logits, in units of the logits' own spread."""
    expected = torch.cat(
        [part[-len(found) :] for part, found in zip(oracle.answer(tokens).logits, logits, strict=True)]
    )
    return float((torch.cat(logits) - expected).pow(2).mean().sqrt() / expected.std())


@pytest.mark.parametrize(("name", "eager"), [("int8-w8a8-token", False), ("fp8-ct-channel", True)])
def test_adapter_on_eight_bit_layers(name: str, eager: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base and the adapted model are those of float64 with the same activations rounded, within BF16's noise."""
    seen: list[Packed] = []

    def pack(weight: Any, scheme: Any, static: Any, device: torch.device, dtype: torch.dtype) -> Packed:
        seen.append(CudaW8A8().pack(weight, scheme, static))
        return seen[-1]

    monkeypatch.setattr(kernel, "pack_weight", pack)
    monkeypatch.setattr(w8a8_native, "library", lambda: None)
    cell = BY_NAME[name]
    written = write_checkpoint(tmp_path / "model", MODEL, cell.recipe)
    added = write_adapter(tmp_path / "adapter", MODEL)
    options = {**cell.engine_options(), "enable_lora": True, "max_lora_rank": RANK, "dtype": "bfloat16"}
    with engine(written.folder, **options, enforce_eager=eager) as llm:
        base, base_logits = ask(llm)
        adapted, adapted_logits = ask(llm, lora_request=LoRARequest("a", 1, str(tmp_path / "adapter")))
    assert seen
    dense = {key: t.double() + added[key].double() if key in added else t for key, t in written.dense.items()}
    plain = Oracle(MODEL, written, fp8=True)
    merged = Oracle(MODEL, replace(written, dense=dense), fp8=True)
    # Twice what was measured: BF16 moves activations over the middle of two codes, and FP8's lie far apart.
    allowed = 0.06 if name.startswith("int8") else 0.15
    assert distance(base_logits, plain, base) < allowed
    assert distance(adapted_logits, merged, adapted) < allowed
    assert distance(adapted_logits, plain, adapted) > 4 * allowed
