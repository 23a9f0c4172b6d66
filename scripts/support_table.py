"""Write the table of docs/reference/support.md from the matrix that the tests run.

python scripts/support_table.py            writes the table
python scripts/support_table.py --check    exits with 1 where it is out of date
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from humming_support import why_humming_rejects

from vllm_quant_kernels.kernel import Device
from vllm_quant_kernels.registry import choose

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/reference/support.md"
BEGIN, END = "<!-- support-table:begin -->", "<!-- support-table:end -->"
SIZE = 4096
MODELS = {
    "llama": "Llama",
    "llama-tied": "Llama, tied embeddings",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "mixtral": "Mixtral (experts)",
}
COLUMNS = (
    "method", "checkpoint", "model", "TP", "vLLM, CPU", "vLLM, CUDA", "vLLM 0.33, CUDA, `-q humming`", "claimed",
    "plugin's kernel, CUDA",
)  # fmt: skip


def _answer(reason: str | None) -> str:
    return "yes" if reason is None else "no"


def _online(cell: Any) -> tuple[str, str, str]:
    """What vLLM's own online quantization does with the linear layers and experts of a 16-bit checkpoint."""
    if cell.family != "FP8":
        return "no", "no", "yes"
    blocks = "weight_block_size" in cell.recipe.online_options
    flag = f"`-q fp8_per_{'block' if blocks else 'channel'}`"
    return "no" if blocks or cell.architecture == "mixtral" else flag, flag, "yes"


def _on_disk(cell: Any, matrix: Any) -> tuple[str, str, str]:
    """What vLLM does with a quantized checkpoint."""
    # A tied LM head is the embedding, which stays in 16 bits whatever the config says.
    lm_head = bool(cell.recipe.config.get("lm_head")) and cell.architecture != "llama-tied"
    humming = why_humming_rejects(cell.recipe.config, quantized_lm_head=lm_head)
    cpu, cuda = (_answer(cell.in_tree_rejects(host)) for host in (matrix.AVX512, matrix.CUDA))
    return cpu, cuda, "yes" if humming is None else f"no: {humming}"


def _claimed(cell: Any, cpu: str, cuda: str) -> str:
    """How a checkpoint reaches the plugin."""
    if cell.recipe.config is None:
        return f"`-q {cell.method}`"
    if "no" not in (cpu, cuda):
        return f"by flag, `-q {cell.method}`"
    return "automatically" + ("" if cpu == cuda else " on CPU" if cpu == "no" else " on CUDA")


def schemes_of(cell: Any, matrix: Any) -> list[Any]:
    """What the plugin's layers of a cell are quantized as."""
    found = [cell.recipe.scheme_of(name) for name in matrix._shapes(cell.architecture)]
    return [scheme for scheme in dict.fromkeys(found) if scheme is not None]


def kernels(cell: Any, matrix: Any) -> str:
    """The kernels of vLLM that the plugin's layers run on, for matrices of the size that models have."""
    where = Device("cuda")
    plain = [scheme.weight for scheme in schemes_of(cell, matrix)]
    names = [choose(weight, SIZE, SIZE, where).kernel.label_on(weight, SIZE, SIZE, where) for weight in plain]
    return "; ".join(dict.fromkeys(name.removeprefix("vLLM ") for name in names))


def table(matrix: Any) -> str:
    """The Markdown table of ``matrix.CELLS``, one line per cell."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for cell in matrix.CELLS:
        if cell.refused:
            row = [cell.family, cell.variant, "", "", "no", "no", "no", "refused, with the reason", ""]
        else:
            cpu, cuda, humming = _online(cell) if cell.recipe.config is None else _on_disk(cell, matrix)
            model = MODELS[cell.architecture]
            row = [cell.family, cell.variant, model, str(cell.tp), cpu, cuda, humming, _claimed(cell, cpu, cuda)]
            row.append(kernels(cell, matrix))
        lines.append(f"| {' | '.join(row)} |".replace("|  |", "| |").replace("|  |", "| |"))
    return "\n".join(lines)


def updated(page: str, rows: str) -> str:
    """``page`` with the text between the markers replaced by ``rows``.

    Raises:
        ValueError: the markers are missing.
    """
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} lacks {BEGIN} or {END}")
    return f"{head}{BEGIN}\n{rows}\n{END}{tail}"


def main() -> None:
    sys.path.insert(0, str(ROOT))
    matrix = importlib.import_module("tests.support.matrix")
    page = PAGE.read_text("utf-8")
    wanted = updated(page, table(matrix))
    if "--check" in sys.argv[1:]:
        if page != wanted:
            sys.exit(f"{PAGE.relative_to(ROOT)} is out of date: run python scripts/support_table.py")
    elif page != wanted:
        PAGE.write_text(wanted, "utf-8")


if __name__ == "__main__":
    main()
