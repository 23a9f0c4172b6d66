"""Write the table of supported checkpoints into README.md, from the matrix that the tests run.

python scripts/support_table.py            writes README.md
python scripts/support_table.py --check    only tells whether it is up to date (exit code 1 when not)
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
BEGIN, END = "<!-- support-table:begin -->", "<!-- support-table:end -->"
NAMES = {
    "llama": "Llama",
    "llama-tied": "Llama, tied embeddings",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "mixtral": "Mixtral (experts)",
}


def _answer(reason: str | None) -> str:
    return "yes" if reason is None else "no"


def table(matrix: Any) -> str:
    """The Markdown table of ``matrix.CELLS``, one line per cell."""
    lines = [
        "| method | checkpoint | model | TP | vLLM alone, CPU | vLLM alone, CUDA | taken |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in matrix.CELLS:
        if cell.refused:
            lines.append(f"| {cell.family} | {cell.variant} | | | no | no | refused, with the reason |")
            continue
        cpu, cuda = (cell.in_tree_rejects(host) for host in (matrix.AVX512, matrix.CUDA))
        if cell.recipe.config is None:
            taken = f"`-q {cell.method}`"
        elif cpu is None and cuda is None:
            taken = f"by flag, `-q {cell.method}`"
        else:
            taken = "automatically" + ("" if cpu and cuda else " on CPU" if cpu else " on CUDA")
        model = NAMES[cell.architecture]
        lines.append(
            f"| {cell.family} | {cell.variant} | {model} | {cell.tp} | {_answer(cpu)} | {_answer(cuda)} | {taken} |"
        )
    return "\n".join(lines)


def updated(readme: str, rows: str) -> str:
    """``readme`` with what stands between the markers replaced by ``rows``.

    Raises:
        ValueError: the markers are missing.
    """
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md lacks {BEGIN} or {END}")
    return f"{head}{BEGIN}\n{rows}\n{END}{tail}"


def main() -> None:
    sys.path.insert(0, str(ROOT))
    matrix = importlib.import_module("tests.support.matrix")
    readme = README.read_text("utf-8")
    wanted = updated(readme, table(matrix))
    if "--check" in sys.argv[1:]:
        if readme != wanted:
            sys.exit("README.md: the support table is out of date: run python scripts/support_table.py")
    elif readme != wanted:
        README.write_text(wanted, "utf-8")


if __name__ == "__main__":
    main()
