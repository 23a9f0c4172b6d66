"""Stored matrices of online transforms in the plan: the bytes that the layers really keep, each map once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.support.recipes import compressed_tensors
from tests.support.tiny_models import tiny_model
from tests.support.transformed import group, write_transformed
from vllm_quant_kernels import rotation
from vllm_quant_serve.plan.api import make_plan
from vllm_quant_serve.plan.request import PlanRequest

GROUPS = {
    # Shared by both layers, in blocks of 32.
    "R": group("random-matrix", ("input", False, "re:.*down_proj$"), ("weight_input", True, "re:.*down_proj$"),
               head_dim=32),
    # Of the whole input.
    "H": group("random-hadamard", ("input", False, "re:.*o_proj$"), ("weight_input", True, "re:.*o_proj$")),
    # Computed, not stored.
    "S": group("hadamard", ("input", False, "re:.*gate_proj$"), head_dim=16),
}  # fmt: skip


def test_stored_matrices_are_counted(tmp_path: Path) -> None:
    folder = write_transformed(tmp_path, tiny_model("llama"), GROUPS, compressed_tensors("int-quantized")).folder
    plain = shutil.copytree(folder, tmp_path / "plain")
    tensors = load_file(folder / "model.safetensors")
    online = {name: t for name, t in tensors.items() if name.endswith(("R_input.weight", "H_input.weight"))}
    assert online
    save_file(
        {n: t for n, t in tensors.items() if not any(f".{one}_" in n for one in GROUPS)}, plain / "model.safetensors"
    )
    config = json.loads((plain / "config.json").read_text())
    del config["quantization_config"]["transform_config"]
    (plain / "config.json").write_text(json.dumps(config))
    hadamard = rotation.factored(
        next(t for n, t in online.items() if "H_input" in n).float(), torch.float32, transposed=False
    )
    assert hadamard is not None
    kept = sum(t.nbytes for t in (*hadamard.parameters(), *hadamard.buffers())) + 4 * 32 * 32
    planned, without = (
        make_plan(PlanRequest(str(one), gpu=("h100",))).weight_bytes_per_rank for one in (folder, plain)
    )
    assert planned - without == kept
