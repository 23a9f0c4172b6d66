"""``vllm-quant backends``."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Literal

import typer

from vllm_quant_plugin.backends.store import (
    BACKENDS,
    Installed,
    find_backend,
    get_backend,
    home,
    install_backend,
    remove_backend,
)
from vllm_quant_plugin.errors import UsageError


def _install(name: str) -> Installed:
    from rich.console import Console

    with Console(stderr=True).status(f"installing {name} into {home()} (minutes)"):
        return install_backend(name)


def offer_backend(name: str) -> None:
    """On a terminal, ask whether to install a backend that is missing; elsewhere leave it to the error."""
    if find_backend(name) is None and sys.stdin.isatty() and sys.stderr.isatty():
        what = get_backend(name).what
        if typer.confirm(f"{what}: not installed. Install it into {home()} now (about 2 GB)?", err=True):
            _install(name)


def _row(name: str) -> dict[str, object]:
    found = find_backend(name)
    return {
        "name": name, "what": BACKENDS[name].what, "version": found.version if found else None,
        "path": str(found.path) if found else None, "outdated": bool(found and found.outdated),
    }  # fmt: skip


def backends(
    action: Annotated[Literal["list", "install", "remove"], typer.Argument(help="What to do.")] = "list",
    name: Annotated[str | None, typer.Argument(help=f"One of: {', '.join(BACKENDS)}.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Install, list or remove quantization libraries that need an environment of their own."""
    if action != "list" and name is None:
        raise UsageError(f"backends {action} needs a name", f"one of {', '.join(BACKENDS)}")
    if name is not None:
        get_backend(name)
    if action == "install" and name is not None:
        _install(name)
    elif action == "remove" and name is not None and not remove_backend(name) and not as_json:
        print(f"{name} was not installed")
    rows = [_row(n) for n in ([name] if name else BACKENDS)]
    if as_json:
        print(json.dumps({"home": str(home()), "backends": rows}, indent=2))
        return
    for row in rows:
        state = f"{row['version']} in {row['path']}" if row["version"] else "not installed"
        print(f"{row['name']}: {state}" + (" (made from another lock; install again)" if row["outdated"] else ""))
