"""One family of models, served by each method: how far its prompt logits are from those of the unquantized checkpoint.

Its weights are such that every stored format holds them exactly (grid_weights.py).
"""

from __future__ import annotations

import gc
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file

from tests.support.engines import PROMPTS, Answer, ask
from tests.support.families import write_family
from tests.support.grid_weights import GROUP, as_stored, fits
from tests.support.quantized_checkpoints import write_folder
from tests.support.recipes import Recipe, awq, compressed_tensors, gptq
from vllm_quant_plugin.formats import get_format


@dataclass(frozen=True)
class Method:
    """One way of serving.

    Attributes:
        name: of the row.
        vllm: ``--quantization``.
        recipe: of a stored checkpoint; None for quantization while loading.
        limit: of ``distance``. Stored ones hold the weights exactly.
    """

    name: str
    vllm: str
    recipe: Recipe | None
    limit: float


METHODS = (
    Method("int8 online", "vqp_int8", None, 0.1),
    Method("fp8 online", "vqp_fp8", None, 0.1),
    Method("gptq", "vqp_gptq", gptq(4, GROUP), 0.01),
    Method("awq", "vqp_awq", awq(4, GROUP), 0.01),
    Method("fp8 stored", "vqp_fp8", compressed_tensors("float-quantized"), 0.01),
)


def distance(got: Answer, reference: Answer) -> float:
    """Median over the prompts' positions of |difference| / |centred reference|: 1.4 for unrelated logits.

    The median, because a router whose two best experts are equal within rounding changes single positions: one of 70 in
    a Qwen3-Next of FP8 blocks (0.77, all others within 0.06), none (0.06) where all four experts are chosen.
    """
    found = []
    for mine, theirs, prompt in zip(got.logits, reference.logits, PROMPTS, strict=True):
        rows = len(prompt)
        centred = theirs[:rows] - theirs[:rows].mean(dim=-1, keepdim=True)
        found.append((mine[:rows] - theirs[:rows]).norm(dim=-1) / centred.norm(dim=-1))
    return float(torch.cat(found).median())


# Of families that do not say which modules they fuse.
_PARTS = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


def _tail(name: str) -> str:
    """A module's name from its layer's number on: what checkpoint and vLLM have in common."""
    found = re.search(r"(?:^|\.)(\d+\..*)", name)
    return found[1] if found else name


def _chosen(names: list[str], linear: set[str]) -> set[str]:
    """The checkpoint's names of the modules ``linear``; by layer and leaf where what is between differs."""
    tails = {_tail(name): name for name in names}
    ends = {(tail.partition(".")[0], tail.rpartition(".")[2]) for tail in linear - set(tails)}
    return {n for t, n in tails.items() if t in linear or (t.partition(".")[0], t.rpartition(".")[2]) in ends}


@contextmanager
def recorded(found: set[str]) -> Iterator[None]:
    """Gather the tails of the checkpoint modules that the plugin quantizes, experts as their stem and a dot."""
    from vllm_quant_plugin.methods.config import VqpConfig
    from vllm_quant_plugin.methods.linear import VqpLinearMethod
    from vllm_quant_plugin.methods.moe import VqpMoEMethod

    original = VqpConfig.get_quant_method

    def get(self: Any, layer: Any, prefix: str) -> Any:
        method = original(self, layer, prefix)
        stem, _, leaf = prefix.rpartition(".")
        if isinstance(method, VqpLinearMethod):
            parts = self.packed_modules_mapping.get(leaf) or _PARTS.get(leaf) or []
            # Some checkpoints hold the fused module as well.
            found.update(_tail(f"{stem}.{part}") for part in [leaf, *parts])
        elif isinstance(method, VqpMoEMethod):
            found.add(_tail(prefix.removesuffix(".routed_experts")) + ".")
        return method

    with mock.patch.object(VqpConfig, "get_quant_method", get):
        yield


def write_stored(folder: Path, dense: Path, recipe: Recipe, linear: set[str]) -> int:
    """Write the checkpoint in the recipe's format and return how many modules of ``linear`` had a shape that fits."""
    stored: dict[str, torch.Tensor] = {}
    for file in sorted(dense.glob("*.safetensors")):
        stored |= load_file(file)
    assert recipe.scheme is not None
    stems = tuple(name for name in linear if name.endswith("."))
    names = [n.removesuffix(".weight") for n in stored if n.endswith(".weight")]
    chosen = _chosen(names, linear) | {n for n in names if _tail(n).startswith(stems)}
    # Fused modules and the experts of a layer are alike.
    misfits = {_tail(n).rpartition(".")[0] for n in chosen if not fits(stored[f"{n}.weight"])}
    odd = tuple(stem for stem in stems if any(m.startswith(stem) for m in misfits))
    count = 0
    for name in sorted(chosen):
        tail = _tail(name)
        if tail.rpartition(".")[0] in misfits or tail.startswith(odd):
            continue
        weight = as_stored(stored.pop(f"{name}.weight"), recipe.scheme)
        for leaf, tensor in get_format(recipe.scheme).pack(weight, recipe.scheme).items():
            stored[f"{name}.{leaf}"] = tensor
        count += 1
    config = json.loads((dense / "config.json").read_text())
    shutil.rmtree(folder, ignore_errors=True)
    write_folder(folder, config | {"quantization_config": dict(recipe.config or {})}, stored)
    return count


def _attempt(folder: Path, **options: Any) -> Answer | str:
    """The answer of ``folder``'s engine, or the first cause of its failure in one line."""
    try:
        return ask(folder, **options)
    except BaseException as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        message = " ".join(str(cause).split())
        return f"{type(cause).__name__}: {message}"[:300]
    finally:
        gc.collect()


def run(architecture: str, folder: Path, methods: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """One row per method: {"family", "method", "result": "right", "wrong", "refused" or "skipped", ...}.

    Args:
        methods: names of ``METHODS``; none means all. The first is always run: it shows what can be quantized.
    """
    row: dict[str, Any] = {"family": architecture}
    try:
        dense = write_family(folder / "dense", architecture)
    except Exception as error:
        reason = f"no tiny checkpoint: {type(error).__name__}: {error}"[:300]
        yield row | {"method": "", "result": "skipped", "reason": reason}
        return
    plain, row["dtype"] = _attempt(dense), "float32"
    if isinstance(plain, str):
        first, row["dtype"] = plain, "bfloat16"
        plain = _attempt(dense, dtype="bfloat16")
        if isinstance(plain, str):
            yield row | {"method": "", "result": "skipped", "reason": f"not served unquantized: {first}"}
            return
    linear: set[str] = set()
    for method in METHODS:
        if method is METHODS[0] or not methods or method.name in methods:
            yield row | {"method": method.name} | _row(method, folder, dense, plain, row["dtype"], linear)


def _row(method: Method, folder: Path, dense: Path, plain: Answer, dtype: str, linear: set[str]) -> dict[str, Any]:
    if method.recipe is None:
        overrides = {"quantization_config": {"quant_method": method.vllm, "activations": "none"}}
        with recorded(linear):
            got = _attempt(dense, quantization=method.vllm, dtype=dtype, hf_overrides=overrides)
        count = len(linear)
    else:
        count = write_stored(folder / "stored", dense, method.recipe, linear)
        if not count:
            return {"result": "skipped", "reason": "no module fits"}
        got = _attempt(folder / "stored", quantization=method.vllm, dtype=dtype)
    if isinstance(got, str):
        return {"result": "refused", "modules": count, "reason": got}
    far, slack = distance(got, plain), 0.0 if dtype == "float32" else 0.1
    same = sum(a == b for a, b in zip(got.tokens, plain.tokens, strict=True))
    return {
        "result": "right" if far <= method.limit + slack else "wrong", "modules": count,
        "distance": round(far, 6), "same_tokens": f"{same}/{len(PROMPTS)}",
    }  # fmt: skip
