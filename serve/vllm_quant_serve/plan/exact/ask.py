"""``--exact``: asks vLLM itself about a placement, on the meta device in a subprocess. No torch here.

One subprocess answers many questions: importing vLLM takes ten seconds, a model then takes less than one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vllm_quant_plugin.errors import BackendError

TIMEOUT = 600.0


@dataclass(frozen=True)
class ExactJob:
    """One question.

    Attributes:
        model: a folder with config.json.
        kv_bytes: KV-cache bytes per rank.
        names: also report the bytes of each parameter.
        partition: layers of each pipeline stage, where the stages differ from vLLM's even split.
        any_kernel: size the weights even where this platform has no kernel for their scheme.
    """

    model: str
    kv_bytes: int
    tp: int = 1
    pp: int = 1
    max_model_len: int | None = None
    block_size: int | None = None
    kv_cache_dtype: str | None = None
    quantization: str | None = None
    dtype: str | None = None
    max_num_batched_tokens: int | None = None
    names: bool = False
    partition: tuple[int, ...] | None = None
    any_kernel: bool | None = None


@dataclass(frozen=True)
class ExactAnswer:
    """vLLM's answer: ``error`` is its refusal, else the figures are set.

    Attributes:
        weights: parameter bytes of one rank of each pipeline stage, as created (before repacking).
        buffers: bytes of buffers (cos/sin tables and small scales) likewise.
        blocks: KV blocks; tokens: "KV cache size"; concurrency: "Maximum concurrency".
        device: platform that answered, ``cpu`` or ``cuda``.
        in_flight: tokens that sliding windows reserve.
    """

    error: str = ""
    weights: tuple[int, ...] = ()
    buffers: tuple[int, ...] = ()
    blocks: int = 0
    tokens: int = 0
    concurrency: float = 0.0
    block_size: int = 0
    in_flight: int = 0
    architecture: str = ""
    dtype: str = ""
    device: str = ""
    names: tuple[dict[str, int], ...] = ()


def _environment() -> dict[str, str]:
    import vllm_quant_plugin
    import vllm_quant_serve

    roots = [str(Path(str(m.__file__)).parents[1]) for m in (vllm_quant_plugin, vllm_quant_serve)]
    path = os.pathsep.join([*roots, *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path, "VLLM_LOGGING_LEVEL": "ERROR", "OMP_NUM_THREADS": "1"}
    env.setdefault("HF_HUB_OFFLINE", "1")
    env.pop("VLLM_CPU_KVCACHE_SPACE", None)
    return env


def ask_vllm(jobs: Sequence[ExactJob], *, timeout: float = TIMEOUT) -> Iterator[ExactAnswer]:
    """The answers to ``jobs`` in order, each as soon as it is there.

    Raises:
        BackendError: vLLM is not installed here, died or took longer than ``timeout`` seconds in all.
    """
    lines = "".join(json.dumps({k: v for k, v in asdict(job).items() if v is not None}) + "\n" for job in jobs)
    command = [sys.executable, "-m", "vllm_quant_serve.plan.exact.worker"]
    try:
        done = subprocess.run(
            command, input=lines, capture_output=True, text=True, env=_environment(), timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        raise BackendError(f"vLLM did not answer within {timeout:.0f} s", "plan without --exact") from None
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if len(answers) < len(jobs):
        tail = (done.stderr.strip().splitlines() or ["no output"])[-1][:200]
        hint = "install vLLM here" if "No module named 'vllm'" in done.stderr else "plan without --exact"
        raise BackendError(f"vLLM could not be asked: {tail}", hint)
    for answer in answers:
        yield _answer(answer)


def _answer(raw: dict[str, Any]) -> ExactAnswer:
    if "error" in raw:
        return ExactAnswer(error=raw["error"].splitlines()[0])
    return ExactAnswer(
        weights=tuple(raw["weights"]), buffers=tuple(raw["buffers"]), blocks=raw["blocks"], tokens=raw["tokens"],
        concurrency=raw["concurrency"], block_size=raw["block_size"], in_flight=raw["in_flight"],
        architecture=raw["architecture"], dtype=raw["dtype"], device=raw["device"],
        names=tuple(raw.get("names", ())),
    )  # fmt: skip
