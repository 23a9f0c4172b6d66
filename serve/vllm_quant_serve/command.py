"""``vllm-quant serve``: plan, print the exact ``vllm serve`` line, launch it, supervise it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any

import typer

from vllm_quant_plugin.errors import UsageError
from vllm_quant_serve.deploy import IMAGE, Deployment, Target, set_words
from vllm_quant_serve.deploy import emit as emit_files
from vllm_quant_serve.flags import ServeArgs, parse_args
from vllm_quant_serve.launch import LOOPBACK, Launch, build_launch
from vllm_quant_serve.plan.api import Plan, make_plan
from vllm_quant_serve.plan.options import DeviceOptions, GoalOptions
from vllm_quant_serve.planning import (
    ONE_MACHINE,
    Machines,
    installed_for_cpu,
    machines_of,
    peaks_of,
    plan_document,
    plan_request,
    plan_summary,
    refuse_pickle,
)
from vllm_quant_serve.supervise.fallbacks import MemoryFallbacks
from vllm_quant_serve.supervise.launch_recorder import launch_recorder
from vllm_quant_serve.supervise.options import SuperviseOptions
from vllm_quant_serve.supervise.report import Report
from vllm_quant_serve.supervise.run_directory import RunDirectory
from vllm_quant_serve.supervise.session import Session


class Goal(Enum):
    """What the planner prefers among placements that fit."""

    FEWEST_GPUS = "fewest-gpus"
    THROUGHPUT = "throughput"
    LATENCY = "latency"
    COST = "cost"


def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL [VLLM SERVE FLAGS]", help="A folder or a hub id.")],
    gpu: Annotated[list[str], typer.Option(help="Plan for these devices, e.g. h100:4, not this host's.")] = [],  # noqa: B006
    nodes: Annotated[int | None, typer.Option(min=1, help="Hosts that each have these GPUs.")] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Plan for the CPU backend.")] = False,
    concurrency: Annotated[int, typer.Option(min=1, help="Full-length requests that must fit at once.")] = 1,
    objective: Annotated[Goal, typer.Option(help="What the planner prefers.")] = Goal.FEWEST_GPUS,
    no_plan: Annotated[bool, typer.Option("--no-plan", help="Launch without planning.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and the vllm serve line, and leave.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Events as one JSON object per line.")] = False,
    startup_timeout: Annotated[float, typer.Option(min=1, help="Seconds until ready.")] = 1800.0,
    drain_timeout: Annotated[float, typer.Option(min=0, help="Seconds for requests in flight after SIGTERM.")] = 30.0,
    hang_timeout: Annotated[
        float | None,
        typer.Option(min=0, help="Requests wait without an engine step so long: hung. [30, CPU 120, 0: off]"),
    ] = None,
    deep_check: Annotated[float, typer.Option(min=0, help="Ask an idle engine for a token this often; 0 off.")] = 30.0,
    restart: Annotated[int, typer.Option(min=0, help="Start a dead or hung server again, at most N times.")] = 0,
    admin_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port of the status page and probes; default: the server's + 1."),
    ] = None,
    admin_host: Annotated[str, typer.Option(help="Beyond loopback it needs VQP_ADMIN_TOKEN.")] = LOOPBACK,
    prompt_tokens: Annotated[int | None, typer.Option(min=1, help="Prompt of a typical request, for the plan.")] = None,
    output_tokens: Annotated[int | None, typer.Option(min=1, help="Output of a typical request, for the plan.")] = None,
    slo_ttft: Annotated[float | None, typer.Option(min=0, help="Objective: seconds to the first token.")] = None,
    slo_tpot: Annotated[float | None, typer.Option(min=0, help="Objective: seconds per output token.")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Price of one device-hour.")] = None,
    no_admin: Annotated[bool, typer.Option("--no-admin", help="No status page and probes.")] = False,
    emit: Annotated[Target | None, typer.Option(help="Print deployment files for this launch, and leave.")] = None,
    image: Annotated[str, typer.Option(help="Container image, for --emit.")] = IMAGE,
) -> None:
    """Plan, launch vllm serve, supervise it, export metrics.

    Every flag that is not listed here goes to ``vllm serve`` untouched, and a flag you set always
    wins over the plan. The server listens on 127.0.0.1 unless you give --host.
    """
    words = parse_args([model, *context.args])
    _refuse_reserved(words)
    plan, peaks, machines = None, None, ONE_MACHINE
    if not no_plan:
        goal = GoalOptions(concurrency, objective.value, prompt_tokens, output_tokens, slo_ttft, slo_tpot, price)
        request = plan_request(words, DeviceOptions(gpu, nodes, cpu), goal)
        plan = make_plan(request)
        peaks, machines = peaks_of(request, plan), machines_of(request, plan)
    launch = build_launch(words, plan.serve_args() if plan else [], plan.env if plan else None)
    report = Report(as_json=as_json)
    if dry_run:
        _show(report, plan, launch, as_json)
        return
    # One step of a long prompt's chunk takes far longer on a CPU.
    patience = hang_timeout if hang_timeout is not None else 120.0 if cpu or installed_for_cpu() else 30.0
    options = SuperviseOptions(
        startup_timeout, drain_timeout, hang_timeout=patience, deep_check=deep_check, restarts=restart
    )
    if emit is not None:
        typer.echo(emit_files(emit, _deployment(context, launch, plan, options, machines, image, admin_port)), nl=False)
        return
    refuse_pickle(words)
    launch.endpoint.check_free()
    _announce(report, plan, launch)
    document = plan_document(plan)
    metadata = {"peaks": peaks, "slo": {"ttft": slo_ttft, "tpot": slo_tpot}, "price": price}
    fallbacks = MemoryFallbacks(launch.planned, words, document)

    def make() -> Session:
        record = None if plan is None else launch_recorder(plan)
        return Session(launch, RunDirectory.create(), report, options, document, fallbacks, metadata, record)

    admin = None if no_admin else _bind_admin(admin_host, admin_port, launch)
    code = asyncio.run(_supervise(make, admin))
    if code:
        raise typer.Exit(code)


async def _supervise(make: Callable[[], Session], admin: socket.socket | None) -> int:
    session = make()
    if admin is None:
        return await session.run()
    from vllm_quant_serve.admin.server import AdminServer, admin_token

    app = AdminServer(session, admin, admin_token())
    app.start()
    session.report.event("admin", f"status page and probes: {app.address}", url=app.address)
    try:
        return await session.run()
    finally:
        await app.stop()


def _bind_admin(host: str, port: int | None, launch: Launch) -> socket.socket:
    from vllm_quant_serve.admin.server import admin_token, bind

    return bind(host, port, launch.endpoint.port, admin_token())


def _deployment(
    context: typer.Context, launch: Launch, plan: Plan | None, options: SuperviseOptions, machines: Machines,
    image: str, admin_port: int | None,
) -> Deployment:  # fmt: skip
    """This command line as something to deploy."""
    devices = {"gpu", "nodes"}
    left_out = {"model", "emit", "image", "dry_run", "as_json", "admin_port", "admin_host", *devices}
    return Deployment(
        launch, plan, options, machines, set_words(context, lambda name: name not in left_out),
        set_words(context, lambda name: name in devices), image, admin_port or launch.endpoint.port + 1,
    )  # fmt: skip


def _refuse_reserved(words: ServeArgs) -> None:
    if words.has("--uds") and words.has("--host"):
        raise UsageError("--uds and --host exclude each other", "give one of them")


def _document(plan: Plan | None, launch: Launch) -> dict[str, Any]:
    return {
        "plan": plan_document(plan),
        "command": launch.line,
        "argv": ["vllm", *launch.serve_args],
        "env": dict(launch.variables),
        "url": launch.endpoint.url,
    }


def _show(report: Report, plan: Plan | None, launch: Launch, as_json: bool) -> None:
    if as_json:
        report.object(_document(plan, launch))
        return
    _announce(report, plan, launch)


def _announce(report: Report, plan: Plan | None, launch: Launch) -> None:
    if plan is not None:
        report.event("plan", plan_summary(plan), plan=plan_document(plan))
    report.event("command", launch.line, argv=["vllm", *launch.serve_args])
    if launch.api_keys:
        report.event("api-key", "the API key is handed over in the environment, not on this line")


# Flags that typer does not know are vLLM's.
serve.context_settings = {"allow_extra_args": True, "ignore_unknown_options": True}  # type: ignore[attr-defined]
