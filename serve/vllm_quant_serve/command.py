"""``vllm-quant serve``: plan, print the exact ``vllm serve`` line, launch it, supervise it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import ExitStack
from typing import Annotated, Any

import typer

from vllm_quant_plugin.console import is_verbose
from vllm_quant_plugin.errors import UsageError
from vllm_quant_plugin.option_groups import option_groups
from vllm_quant_serve.deploy import Deployment, set_words
from vllm_quant_serve.deploy import emit as emit_files
from vllm_quant_serve.flags import ServeArgs, parse_args
from vllm_quant_serve.kernel_proof import kernel_rows, prove_kernels
from vllm_quant_serve.launch import Launch, build_launch, hold_address
from vllm_quant_serve.limits import Limits
from vllm_quant_serve.options import AdminOptions, LaunchOptions
from vllm_quant_serve.plan.api import Plan, make_plan
from vllm_quant_serve.plan.options import DeviceOptions, GoalOptions
from vllm_quant_serve.planning import (
    ONE_MACHINE,
    installed_for_cpu,
    machines_of,
    peaks_of,
    plan_document,
    plan_request,
    plan_summary,
)
from vllm_quant_serve.preflight import check
from vllm_quant_serve.supervise.early_stop import EarlyStop
from vllm_quant_serve.supervise.fallbacks import MemoryFallbacks
from vllm_quant_serve.supervise.launch_recorder import launch_recorder
from vllm_quant_serve.supervise.options import SuperviseOptions
from vllm_quant_serve.supervise.report import Report
from vllm_quant_serve.supervise.run_directory import RunDirectory
from vllm_quant_serve.supervise.session import Session


@option_groups
def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL [VLLM SERVE FLAGS]", help="Model folder or Hub id.")],
    devices: DeviceOptions,
    goal: GoalOptions,
    options: LaunchOptions,
    supervise: SuperviseOptions,
    limits: Limits,
    admin: AdminOptions,
) -> None:
    """Plan, launch vllm serve, supervise it, export metrics.

    Every flag that is not listed here goes to ``vllm serve`` untouched, and a flag that you set always
    wins over the plan. The server listens on 127.0.0.1 unless you give --host.
    """
    with EarlyStop(), ExitStack() as held:
        _serve(context, parse_args([model, *context.args]), devices, goal, options, supervise, limits, admin, held)


def _serve(
    context: typer.Context,
    args: ServeArgs,
    devices: DeviceOptions,
    goal: GoalOptions,
    options: LaunchOptions,
    supervise: SuperviseOptions,
    limits: Limits,
    admin: AdminOptions,
    held: ExitStack,
) -> None:
    """The command; ``held`` releases at its end what it takes on the way."""
    if args.has("--uds") and args.has("--host"):
        raise UsageError("--uds and --host exclude each other", "give one of them")
    if not options.dry_run and options.emit is None:
        # Before the plan, which may take a while: a second launcher fails at once.
        held.callback(hold_address(args).close)
    plan, peaks, machines, request = None, None, ONE_MACHINE, None
    if not options.no_plan:
        request = plan_request(args, devices, goal)
        plan = make_plan(request)
        peaks, machines = peaks_of(request, plan), machines_of(request, plan)
    launch = build_launch(args, plan.serve_args() if plan else [], plan.env if plan else None)
    report = Report(as_json=options.as_json)
    if options.dry_run:
        _show(report, plan, launch)
        return
    supervise = supervise.for_device(cpu=devices.cpu or installed_for_cpu())
    if options.emit is not None:
        deployment = Deployment(
            launch, plan, supervise, machines, set_words(context, lambda name: name not in _NOT_DEPLOYED),
            set_words(context, lambda name: name in _DEVICES), options.image,
            admin.admin_port or launch.endpoint.port + 1,
        )  # fmt: skip
        typer.echo(emit_files(options.emit, deployment), nl=False)
        return
    check(args)
    on_cpu = devices.cpu or installed_for_cpu()
    if not on_cpu and prove_kernels(report) and request is not None:
        plan = make_plan(request)
        launch = build_launch(args, plan.serve_args(), plan.env)
    _announce(report, plan, launch)
    metadata = {"peaks": peaks, "slo": {"ttft": goal.slo_ttft, "tpot": goal.slo_tpot}, "price": goal.price,
                "limits": limits.to_json(), "kernels": kernel_rows(args, "cpu" if on_cpu else "cuda")}  # fmt: skip
    _supervise(args, launch, plan, report, supervise, admin, metadata, quiet=not is_verbose())


_DEVICES = frozenset({"gpu", "nodes"})
# Parameters that a deployment does not repeat, or spells out itself.
_NOT_DEPLOYED = frozenset({"model", "emit", "image", "dry_run", "as_json", "admin_port", "admin_host", *_DEVICES})
# Flags that typer does not know are vLLM's.
serve.context_settings = {"allow_extra_args": True, "ignore_unknown_options": True}  # type: ignore[attr-defined]


def _supervise(
    args: ServeArgs,
    launch: Launch,
    plan: Plan | None,
    report: Report,
    options: SuperviseOptions,
    admin: AdminOptions,
    metadata: dict[str, Any],
    *,
    quiet: bool,
) -> None:
    """Run the session beside its admin app.

    Raises:
        Exit: it ended with another exit code than 0.
    """
    document = plan_document(plan)
    fallbacks = MemoryFallbacks(launch.planned, args, document)
    record = None if plan is None else launch_recorder(plan)

    def make_session() -> Session:
        run_dir = RunDirectory.create()
        return Session(launch, run_dir, report, options, document, fallbacks, metadata, record, quiet=quiet)

    code = asyncio.run(_run(make_session, None if admin.no_admin else _bind_admin(admin, launch)))
    if code:
        raise typer.Exit(code)


def _bind_admin(admin: AdminOptions, launch: Launch) -> socket.socket:
    from vllm_quant_serve.admin.server import admin_token, bind

    return bind(admin.admin_host, admin.admin_port, launch.endpoint.port, admin_token())


async def _run(make_session: Callable[[], Session], admin: socket.socket | None) -> int:
    # A session is made inside the event loop that it runs in.
    session = make_session()
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


def _show(report: Report, plan: Plan | None, launch: Launch) -> None:
    """What ``--dry-run`` prints."""
    if not report.as_json:
        _announce(report, plan, launch)
        return
    report.object({
        "plan": plan_document(plan),
        "command": launch.line,
        "argv": ["vllm", *launch.serve_args],
        "env": dict(launch.variables),
        "url": launch.endpoint.url,
    })  # fmt: skip


def _announce(report: Report, plan: Plan | None, launch: Launch) -> None:
    if plan is not None:
        report.event("plan", plan_summary(plan), plan=plan_document(plan))
    report.event("command", launch.line, argv=["vllm", *launch.serve_args])
    if launch.api_keys:
        report.event("api-key", "the API key is passed in the environment, not on this line")
