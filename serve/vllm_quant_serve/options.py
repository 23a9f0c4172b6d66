"""Options of ``vllm-quant serve`` besides those of the plan (plan/options.py) and of the supervision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import typer

from vllm_quant_plugin.console import Verbose
from vllm_quant_serve.deploy import IMAGE, Target
from vllm_quant_serve.launch import LOOPBACK


@dataclass(frozen=True)
class LaunchOptions:
    """What the command does instead of launching or on the way to it, and what it prints."""

    help_panel: ClassVar[str] = "Launch"

    no_plan: Annotated[bool, typer.Option("--no-plan", help="Launch without planning.")] = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and the vllm serve line, then exit.")] = (
        False
    )
    as_json: Annotated[bool, typer.Option("--json", help="Print events as one JSON object per line.")] = False
    verbose: Verbose = False
    emit: Annotated[Target | None, typer.Option(help="Print deployment files for this launch, then exit.")] = None
    image: Annotated[str, typer.Option(help="Container image, for --emit.")] = IMAGE


@dataclass(frozen=True)
class AdminOptions:
    """Where the admin app listens.

    Attributes:
        admin_port: None is the server's port + 1, or any free one.
    """

    help_panel: ClassVar[str] = "Admin app"

    admin_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port of the status page and probes; default: the server's + 1."),
    ] = None
    admin_host: Annotated[
        str, typer.Option(help="Address of the status page and probes; beyond loopback set VQP_ADMIN_TOKEN.")
    ] = LOOPBACK
    no_admin: Annotated[bool, typer.Option("--no-admin", help="No status page and probes.")] = False
