"""One family in a process of its own: ``python -m tests.support.run_family ARCHITECTURE FOLDER [METHOD ...]``.

Serves the family's tiny checkpoint unquantized and by each method, and prints one JSON object per line: what was run,
and how far its prompt logits are from those of the dequantized reference.
"""

from __future__ import annotations

import gc
import json
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file, save_file

from tests.support.engines import PROMPTS, Answer, ask
from tests.support.families import write_family
from tests.support.quantized_checkpoints import quantize_weight
from tests.support.recipes import Recipe, awq, compressed_tensors, gptq
from vllm_quant_plugin.formats import get_format

GROUP = 32


@dataclass(frozen=True)
class Method:
    """One way of serving.

    Attributes:
        name: of the row.
        vllm: ``--quantization``.
        recipe: of a stored checkpoint; None for quantization while loading.
        limit: of ``distance``. Stored ones are compared with the same weights, those that are quantized while loading
            with the weights before.
    """

    name: str
    vllm: str
    recipe: Recipe | None
    limit: float


METHODS = (
    Method("int8 online", "vqp_int8", None, 0.1),
    Method("fp8 online", "vqp_fp8", None, 0.25),
    Method("gptq", "vqp_gptq", gptq(4, GROUP), 0.01),
    Method("awq", "vqp_awq", awq(4, GROUP), 0.01),
    Method("fp8 stored", "vqp_fp8", compressed_tensors("float-quantized"), 0.01),
)


def distance(got: Answer, reference: Answer) -> float:
    """Median over the prompts' positions of |difference| / |centred reference|: 1.4 for unrelated logits.

    The median, because a router whose two best experts are equal within rounding changes single positions.
    """
    found = []
    for mine, theirs, prompt in zip(got.logits, reference.logits, PROMPTS, strict=True):
        rows = len(prompt)
        centred = theirs[:rows] - theirs[:rows].mean(dim=-1, keepdim=True)
        found.append((mine[:rows] - theirs[:rows]).norm(dim=-1) / centred.norm(dim=-1))
    return float(torch.cat(found).median())


def _tail(name: str) -> str:
    """A module's name from its layer's number on: what checkpoint and vLLM have in common."""
    found = re.search(r"(?:^|\.)(\d+\..*)", name)
    return found[1] if found else name


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
            parts = self.packed_modules_mapping.get(leaf) or [leaf]
            found.update(_tail(f"{stem}.{part}") for part in parts)
        elif isinstance(method, VqpMoEMethod):
            found.add(_tail(prefix.removesuffix(".routed_experts")) + ".")
        return method

    with mock.patch.object(VqpConfig, "get_quant_method", get):
        yield


def _fits(weight: torch.Tensor) -> bool:
    return weight.dim() == 2 and not weight.shape[0] % GROUP and not weight.shape[1] % GROUP


def write_stored(folder: Path, dense: Path, recipe: Recipe, linear: set[str]) -> tuple[Path, Path, int]:
    """The checkpoint in the recipe's format and its reference; modules of ``linear`` whose shape fits are quantized."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(dense.glob("*.safetensors")):
        tensors |= load_file(file)
    stored, reference, count = dict(tensors), dict(tensors), 0
    assert recipe.scheme is not None
    stems = tuple(name for name in linear if name.endswith("."))
    names = [n.removesuffix(".weight") for n in tensors if n.endswith(".weight")]
    chosen = {n for n in names if _tail(n) in linear or _tail(n).startswith(stems)}
    # Fused modules and the experts of a layer are alike.
    misfits = {_tail(n).rpartition(".")[0] for n in chosen if not _fits(tensors[f"{n}.weight"])}
    for name in sorted(chosen):
        tail = _tail(name)
        if tail.rpartition(".")[0] in misfits or any(
            m.startswith(s) and tail.startswith(s) for s in stems for m in misfits
        ):
            continue
        weight = quantize_weight(tensors[f"{name}.weight"].float(), recipe.scheme)
        reference[f"{name}.weight"] = weight.dequantize(torch.float32)
        del stored[f"{name}.weight"]
        for leaf, tensor in get_format(recipe.scheme).pack(weight, recipe.scheme).items():
            stored[f"{name}.{leaf}"] = tensor
        count += 1
    for where, values, quantization in ((folder / "q", stored, recipe.config), (folder / "reference", reference, None)):
        shutil.rmtree(where, ignore_errors=True)
        where.mkdir(parents=True)
        save_file(
            {n: t.contiguous() for n, t in values.items()}, where / "model.safetensors", metadata={"format": "pt"}
        )
        config = json.loads((dense / "config.json").read_text())
        if quantization:
            config["quantization_config"] = dict(quantization)
        (where / "config.json").write_text(json.dumps(config))
    return folder / "q", folder / "reference", count


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
    reference: Answer | str = plain
    if method.recipe is None:
        quantization = {"quant_method": method.vllm, "activations": "none"}
        overrides = {"quantization_config": quantization}
        with recorded(linear):
            got = _attempt(dense, quantization=method.vllm, dtype=dtype, hf_overrides=overrides)
        count = len(linear)
    else:
        quantized, dequantized, count = write_stored(folder, dense, method.recipe, linear)
        if not count:
            return {"result": "skipped", "reason": "no module fits"}
        reference = _attempt(dequantized, dtype=dtype)
        got = _attempt(quantized, quantization=method.vllm, dtype=dtype)
    if isinstance(reference, str):
        return {"result": "skipped", "modules": count, "reason": f"the reference: {reference}"}
    if isinstance(got, str):
        return {"result": "refused", "modules": count, "reason": got}
    far, slack = distance(got, reference), 0.0 if dtype == "float32" else 0.1
    same = sum(a == b for a, b in zip(got.tokens, reference.tokens, strict=True))
    return {
        "result": "right" if far <= method.limit + slack else "wrong", "modules": count,
        "distance": round(far, 6), "same_tokens": f"{same}/{len(PROMPTS)}",
    }  # fmt: skip


if __name__ == "__main__":
    for one in run(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]):
        print("ROW " + json.dumps(one), flush=True)
