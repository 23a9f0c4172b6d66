"""Write docs/reference/environment.md from the table of vllm_quant_kernels/env.py.

python scripts/environment_table.py            writes the page
python scripts/environment_table.py --check    exits with 1 where it is out of date
"""

from __future__ import annotations

import sys
from pathlib import Path

from vllm_quant_kernels.env import VARIABLES, Variable

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/reference/environment.md"
HEAD = """# Environment variables

This page is written by `scripts/environment_table.py`. `vllm-quant env` prints the same table with the values that hold
now. An empty variable counts as unset; a value that a variable does not have is an error.
"""


def row(variable: Variable) -> str:
    """One line of the table."""
    values = ", ".join(f"`{v}`" for v in variable.values) or variable.form
    default = f"`{variable.default}`" if variable.default else ""
    return f"| `{variable.name}` | {values} | {default} | {variable.about} | {variable.reader} |"


def page() -> str:
    """The whole page."""
    columns = "| variable | values | default | what it does | read by |\n|---|---|---|---|---|"
    users = [row(v) for v in VARIABLES if not v.internal]
    internal = [row(v) for v in VARIABLES if v.internal]
    parts = [HEAD, columns, *users, "", "## Set by this project for its own processes", "", columns, *internal]
    return "\n".join(parts) + "\n"


def main() -> None:
    wanted = page()
    if "--check" in sys.argv[1:]:
        if not PAGE.is_file() or PAGE.read_text("utf-8") != wanted:
            sys.exit(f"{PAGE.relative_to(ROOT)} is out of date: run python scripts/environment_table.py")
    else:
        PAGE.write_text(wanted, "utf-8")


if __name__ == "__main__":
    main()
