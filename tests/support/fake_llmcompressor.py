"""Stands in for the interpreter of llm-compressor's environment: same job, same events, rounding to nearest.

FAKE_MODE: ok, or what goes wrong: dies, nan, config, missing, no-input-scale.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from vllm_quant_plugin.checkpoint import read_checkpoint
from vllm_quant_plugin.formats import get_format, parse_quantization_config
from vllm_quant_plugin.quantize.algorithms.rtn import quantize_weight
from vllm_quant_plugin.quantize.io.shards import read_tensor
from vllm_quant_plugin.quantize.modules import linear_modules


def quantize(job: dict[str, Any], mode: str, emit: Callable[..., None]) -> None:
    """What the worker does with ``job``, wrong in the way of ``mode``."""
    checkpoint = read_checkpoint(job["model"])
    config = {
        "quant_method": "compressed-tensors",
        "format": job["scheme"]["format"],
        "ignore": job["ignore"],
        "config_groups": {"group_0": copy.deepcopy(job["scheme"])},
        "kv_cache_scheme": job["kv_cache"],
    }
    model = parse_quantization_config(config)
    modules = {m.name for m in linear_modules(checkpoint)}
    static = not job["scheme"]["input_activations"]["dynamic"]
    tensors: dict[str, torch.Tensor] = {}
    for done, name in enumerate(sorted(checkpoint.tensors), 1):
        tensor, module = read_tensor(checkpoint, name), name.removesuffix(".weight")
        if module not in modules:
            tensors[name] = tensor.float()
            continue
        scheme = model.scheme_for(module)
        assert scheme is not None
        for leaf, value in get_format(scheme).pack(quantize_weight(tensor, scheme), scheme).items():
            tensors[f"{module}.{leaf}"] = value.bfloat16() if leaf == "weight_scale" else value
        if static and mode != "no-input-scale":
            tensors[f"{module}.input_scale"] = torch.tensor(0.25, dtype=torch.bfloat16)
        if job["kv_cache"] and module.endswith("k_proj"):
            stem = module.rpartition(".")[0]
            tensors[f"{stem}.k_scale"], tensors[f"{stem}.v_scale"] = torch.tensor([0.5]), torch.tensor([0.125])
        emit(what=module, done=done, total=len(checkpoint.tensors), peak=200_000_000)
    victim = "model.layers.0.mlp.up_proj"
    if mode == "nan":
        tensors[f"{victim}.weight_scale"][0] = torch.nan
    if mode == "missing":
        del tensors[f"{victim}.weight"]
    if mode == "config":
        config["config_groups"]["group_0"]["weights"]["strategy"] = "tensor"
    folder = Path(job["output"])
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**checkpoint.config, "quantization_config": config}))


def main(arguments: list[str]) -> None:
    isolated, _worker, job_path, descriptor = arguments
    assert isolated == "-I"
    mode = os.environ.get("FAKE_MODE", "ok")
    if mode == "dies":
        sys.exit("RuntimeError: the fake died as asked")
    with os.fdopen(int(descriptor), "w", buffering=1) as events:
        quantize(json.loads(Path(job_path).read_text()), mode, lambda **event: print(json.dumps(event), file=events))


if __name__ == "__main__":
    main(sys.argv[1:])
