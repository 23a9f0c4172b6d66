"""Deployment files for a planning question: ``vllm-quant plan --emit``."""

from __future__ import annotations

import sys
from dataclasses import replace

from vllm_quant_plugin.errors import NoFeasiblePlanError, UsageError
from vllm_quant_serve.deploy import IMAGE, Deployment, Target, emit
from vllm_quant_serve.flags import parse_args
from vllm_quant_serve.launch import build_launch
from vllm_quant_serve.plan.api import Plan, PlanRequest, make_plan
from vllm_quant_serve.plan.search.compare import compare
from vllm_quant_serve.plan.search.methods import METHODS
from vllm_quant_serve.planning import machines_of
from vllm_quant_serve.supervise.options import SuperviseOptions

# Field of the question -> flag of ``vllm-quant serve``.
_OWN = {
    "concurrency": "--concurrency",
    "objective": "--objective",
    "prompt_tokens": "--prompt-tokens",
    "output_tokens": "--output-tokens",
    "slo_ttft": "--slo-ttft",
    "slo_tpot": "--slo-tpot",
    "price": "--price",
    "cpu": "--cpu",
}
_DEVICES = {"gpu": "--gpu", "nodes": "--nodes"}


def _words(request: PlanRequest, flags: dict[str, str]) -> list[str]:
    """The fields that differ from their defaults, as flags."""
    words: list[str] = []
    unset = PlanRequest(request.model)
    for field, flag in flags.items():
        value = getattr(request, field, None)
        if value == getattr(unset, field, None):
            continue
        if value is True:
            words.append(flag)
        elif value is False:
            words.append(flag.replace("--", "--no-", 1))
        else:
            for item in value if isinstance(value, list | tuple) else (value,):
                words += [flag, str(item)]
    return words


def deployment_of(request: PlanRequest, plan: Plan, image: str) -> Deployment:
    """The launch behind a plan, with the launcher's defaults."""
    launch = build_launch(parse_args([request.model]), plan.serve_args(), plan.env)
    # The launcher has no flag for devices known by their memory only: it uses the placement as it is.
    devices = _words(request, _DEVICES) if request.gpu_memory is None else ["--no-plan"]
    machines, own = machines_of(request, plan), _words(request, _OWN)
    return Deployment(launch, plan, SuperviseOptions(), machines, own, devices, image, launch.endpoint.port + 1)


def least_lossy(request: PlanRequest) -> PlanRequest:
    """The question under the method of ``plan --compare`` that loses least and fits; it is named on stderr.

    Raises:
        NoFeasiblePlanError: none fits, or only one for which the model must be quantized first.
    """
    rows = [row for row in compare(request) if row.fits]
    if not rows:
        raise NoFeasiblePlanError(f"{request.model} fits under no method", "plan --compare says what is missing")
    method = next(one for one in METHODS if one.name == rows[0].method)
    if method.online is None:
        run = f"vllm-quant quantize -m {method.name.partition('-')[0].lower()} {request.model}"
        raise NoFeasiblePlanError(f"{method.name} is the first to fit: the model is not stored so yet", f"{run} first")
    print(f"files for {method.name}, the least lossy method that fits", file=sys.stderr)
    return replace(request, quantization=method.online or None)


def show_files(request: PlanRequest, target: str, image: str | None) -> None:
    """Plan and print the files of ``target``.

    Raises:
        UsageError: no such target.
        NoFeasiblePlanError: nothing fits.
    """
    names = [known.value for known in Target]
    if target not in names:
        raise UsageError(f"--emit {target} is unknown", f"it is one of {', '.join(names)}")
    plan = make_plan(request)
    print(emit(Target(target), deployment_of(request, plan, image or IMAGE)), end="")
