"""Cells of the conversion grid in one process: ``python -m tests.support.run_grid plugin|alone FOLDER SOURCE ...``.

``plugin`` makes each source, converts it to every target and starts an engine on what was written; ``alone`` starts
vLLM without this plugin on the same folders. Prints ``START KEY`` before each cell and ``ROW JSON`` after it.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tests.support.engines import PROMPTS, Answer, ask_engine, engine
from tests.support.grid_sources import Made, source_named
from vllm_quant_plugin.checkpoint import read_checkpoint
from vllm_quant_plugin.convert.api import convert_model, targets
from vllm_quant_plugin.errors import VqpError
from vllm_quant_plugin.formats import Host
from vllm_quant_plugin.formats.registry import stored_model
from vllm_quant_plugin.formats.verdict import Verdict, judge_checkpoint

# Relative distance of prompt logits that noise explains: float32; bfloat16 of weights, activations or the cache; inputs
# rounded to FP8 where the reference leaves them alone.
FLOAT32, BFLOAT16, FP8_INPUTS = 1e-4, 0.05, 0.15


def distances(got: Answer, reference: Answer) -> torch.Tensor:
    """Of each position of the prompts, |difference| / |centred reference|: 1.4 for unrelated logits."""
    found = []
    for mine, theirs, prompt in zip(got.logits, reference.logits, PROMPTS, strict=True):
        rows = len(prompt)
        centred = theirs[:rows] - theirs[:rows].mean(dim=-1, keepdim=True)
        found.append((mine[:rows] - theirs[:rows]).norm(dim=-1) / centred.norm(dim=-1))
    return torch.cat(found)


def first_cause(error: BaseException) -> str:
    """One line: what began it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def start(made: Made, dtype: str, limit: float, **options: Any) -> dict[str, Any]:
    """Start an engine on the folder, ask it, and compare: {"result": "right", "wrong" or "failed", ...}."""
    method = ""
    try:
        with engine(made.folder, dtype=dtype, **made.options, **options) as llm:
            config = llm.llm_engine.vllm_config.quant_config
            method = config.get_name() if config else ""
            got = ask_engine(llm)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return {"result": "failed", "method": method, "reason": first_cause(error)}
    finally:
        gc.collect()
    if made.expected is None:
        return {"result": "right", "method": method, "dtype": dtype}
    found = distances(got, made.expected(got.tokens))
    # A rounding of an activation that goes the other way spoils single positions.
    far = float(found.median() if made.rounds else found.max())
    return {
        "result": "right" if far <= limit else "wrong",
        "method": method,
        "dtype": dtype,
        "distance": float(f"{far:.2g}"),
    }


def judged(folder: Path, host: Host) -> Verdict:
    checkpoint = read_checkpoint(folder)
    model = stored_model(checkpoint)
    assert model is not None
    return judge_checkpoint(checkpoint, model, host)


def with_plugin(made: Made, verdict: Verdict) -> dict[str, Any]:
    """The engine as a user gets it, without a flag."""
    options = {"kv_cache_dtype": verdict.kv_cache_dtype} if verdict.kv_cache_dtype else {}
    exact = verdict.server in ("plugin", "vllm with kernels") and not options
    return start(made, "float32" if exact else "bfloat16", FLOAT32 if exact else FP8_INPUTS, **options)


def alone(made: Made, verdict: Verdict) -> dict[str, Any]:
    """vLLM without this plugin."""
    options = {"kv_cache_dtype": verdict.kv_cache_dtype} if verdict.kv_cache_dtype else {}
    plain = Made(made.folder, made.expected, made.rounds)
    return start(plain, "bfloat16", FP8_INPUTS if made.rounds else BFLOAT16, **options)


def convert(made: Made, to: str, folder: Path) -> Made | str:
    """What was written, or why nothing was."""
    try:
        if not folder.exists():
            convert_model(made.folder, folder, to)
    except VqpError as error:
        return f"{error.message} ({error.hint})"
    return Made(folder, made.expected, made.rounds)


def rows(mode: str, folder: Path, name: str, host: Host) -> Iterator[dict[str, Any]]:
    """One row per cell of the source: the checkpoint as it is (target "") and in every format."""
    print(f"START {name}>", flush=True)
    made = source_named(name).make(folder / name / mode)
    for to in ("", *targets()):
        key = {"source": name, "target": to}
        print(f"START {name}>{to}", flush=True)
        cell = convert(made, to, folder / name / mode / f"to-{to}") if to else made
        if isinstance(cell, str):
            if mode == "plugin":
                yield key | {"refused": cell}
            continue
        verdict = judged(cell.folder, host)
        said = {
            "server": verdict.server, "method": verdict.method, "in_tree": verdict.in_tree,
            "kv_cache_dtype": verdict.kv_cache_dtype,
        }  # fmt: skip
        if mode == "plugin":
            yield key | {"verdict": said, "plugin": with_plugin(cell, verdict)}
        else:
            yield key | {"alone": alone(cell, verdict)}


def main() -> None:
    mode, folder = sys.argv[1], Path(sys.argv[2])
    if mode == "plugin":
        from vllm_quant_plugin import plugin

        plugin.register()
    host = Host.local("cpu")
    for name in sys.argv[3:]:
        for row in rows(mode, folder, name, host):
            print("ROW " + json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
