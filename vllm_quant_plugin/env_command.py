"""``vllm-quant env``: the environment variables of the project, from the table in vllm_quant_kernels/env.py."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from vllm_quant_kernels.env import VARIABLES, Variable, text

SECRET = "(set)"


def value_now(variable: Variable) -> str | None:
    """What the variable holds; of a secret, only that it is set."""
    value = text(variable.name)
    return SECRET if value is not None and variable.form == "secret" else value


def as_rows() -> list[dict[str, Any]]:
    """One row per variable, in the order of the table."""
    return [
        {
            "name": v.name,
            "value": value_now(v),
            "default": v.default or None,
            "values": list(v.values) or None,
            "valid": not v.values or text(v.name) in (None, *v.values),
            "about": v.about,
            "reader": v.reader,
            "internal": v.internal,
        }
        for v in VARIABLES
    ]


def env(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Every environment variable, its value now and what it does."""
    rows = as_rows()
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(show_lines=False)
    for column in ("variable", "now", "default"):
        table.add_column(column, overflow="fold")
    table.add_column("what it does")
    for row in rows:
        if row["internal"]:
            continue
        now = row["value"] or ""
        if not row["valid"]:
            now += f" (must be {', '.join(row['values'])})"
        table.add_row(row["name"], now, row["default"] or "", row["about"])
    Console().print(table)
