"""``vllm-quant plan``: what fits, at which TP, with how many KV tokens."""

from __future__ import annotations

from typing import Annotated

import typer

from vllm_quant_plugin.errors import UsageError
from vllm_quant_plugin.option_groups import option_groups
from vllm_quant_serve.plan.options import DeviceOptions, EngineOptions, GoalOptions, MemoryOptions, OutputOptions


@option_groups
def plan(
    devices: DeviceOptions,
    memory: MemoryOptions,
    engine: EngineOptions,
    goal: GoalOptions,
    output: OutputOptions,
    model: Annotated[str | None, typer.Argument(help="Model folder or Hub id.")] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Hub branch, tag or commit.")] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Also ask the installed vLLM about the chosen placement (10 to 20 s).")
    ] = False,
) -> None:
    """What fits, at which tensor-parallel size, with how many KV tokens, and why.

    Reads config.json and safetensors headers only. Exit code 3 when nothing fits.
    """
    from vllm_quant_serve.plan.output import show
    from vllm_quant_serve.plan.request import PlanRequest

    if output.accuracy:
        show.show_accuracy(output.as_json)
        return
    if model is None:
        raise UsageError("plan needs a model", "give a model folder or a Hub id")
    request = PlanRequest.of(model, devices, memory, engine, goal, revision=revision, exact=exact)
    if output.emit is not None:
        from vllm_quant_serve.deploy.from_plan import least_lossy, show_files

        show_files(least_lossy(request) if output.compare else request, output.emit, output.image)
    elif output.compare:
        show.show_comparison(request, output.as_json, output.html)
    else:
        show.show_plan(request, as_json=output.as_json, explained=output.explain, html=output.html)
