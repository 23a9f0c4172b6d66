"""Tasks of lm-evaluation-harness by name, through its vLLM backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm_quant_plugin.errors import BackendError, StartupError, UsageError
from vllm_quant_plugin.quantize.quiet import quiet_output


def run_tasks(
    model: str | Path, tasks: list[str], *, limit: int | None = None, include: Path | None = None, **engine: Any
) -> dict[str, dict[str, float]]:
    """Scores of ``model``: task -> metric -> value.

    Args:
        model: folder or hub id.
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
        with quiet_output():
            import lm_eval  # type: ignore[import-not-found]
            from lm_eval.tasks import TaskManager  # type: ignore[import-not-found]
    except ImportError as err:
        raise BackendError(
            f"--tasks needs lm-evaluation-harness ({err.name} is missing)", "pip install lm-eval"
        ) from None
    with quiet_output():
        manager = TaskManager(include_path=None if include is None else str(include))
    unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown:
        raise UsageError(f"lm-eval has no task {unknown[0]!r}", "see `lm_eval --tasks list`")
    arguments = {"pretrained": str(model), "enforce_eager": True, "seed": 0, **engine}
    try:
        with quiet_output():
            found = lm_eval.simple_evaluate(
                model="vllm", model_args=arguments, tasks=tasks, limit=limit, task_manager=manager, verbosity="ERROR"
            )
    except Exception as err:
        lines = str(err).strip().splitlines() or [type(err).__name__]
        raise StartupError(f"lm-eval failed: {lines[-1]}", "set VQP_VERBOSE=1 to see its output") from err
    return {
        task: {name: float(value) for name, value in sorted(metrics.items()) if isinstance(value, int | float)}
        for task, metrics in sorted(found["results"].items())
    }
