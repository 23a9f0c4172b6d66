"""Every source format converted to every target, and each result loaded by vLLM: ``make test-grid``.

    python benchmarks/grid.py [--out FILE] [--limit SECONDS] [--batch N] [SOURCE ...]

The sources are tests/support/grid_sources.py: tiny models in every format. Each cell's engine is compared with the
float64 model of the dequantized weights, and started a second time without this plugin; what the verdict of ``inspect``
says of the cell is compared with both. FILE gets every row as JSON; an interrupted run continues where it stopped.
Exit code 1 where an engine contradicts the verdict.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR", "TOKENIZERS_PARALLELISM": "false", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}  # fmt: skip
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_tile", "amx_bf16", "amx_fp8")
WITHOUT_PLUGINS = {"VLLM_PLUGINS": ""}


def run(mode: str, folder: Path, names: list[str], limit: int) -> Iterator[dict[str, Any]]:
    """The rows of some sources. A process that dies costs the source that it was at."""
    names = list(names)
    while names:
        command = [sys.executable, "-m", "tests.support.run_grid", mode, str(folder), *names]
        environment = os.environ | ENVIRONMENT | (WITHOUT_PLUGINS if mode == "alone" else {})
        with tempfile.TemporaryFile("w+") as errors:
            child = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
            )
            at, why = names[0] + ">", ""
            assert child.stdout is not None
            try:
                for line in child.stdout:
                    if line.startswith("START "):
                        at = line.removeprefix("START ").strip()
                    elif line.startswith("ROW "):
                        yield json.loads(line.removeprefix("ROW "))
                code = child.wait(timeout=limit)
            finally:
                child.kill()
            if code == 0:
                return
            errors.seek(0)
            why = ([line.strip() for line in errors if line.strip()] or [""])[-1][:300]
        source, _, target = at.partition(">")
        yield {"source": source, "target": target, mode: {"result": "failed", "reason": f"exit code {code}: {why}"}}
        names = names[names.index(source) + 1 :]


def agrees(row: dict[str, Any]) -> str:
    """How an engine contradicts the verdict, "" where none does."""
    if "refused" in row:
        return ""
    said, found, without = row.get("verdict"), row.get("plugin", {}), row.get("alone", {})
    if said is None:
        return f"no verdict: {found.get('reason')}"
    served, in_tree = found.get("result") == "right", without.get("result") == "right"
    ours = str(found.get("method", "")).startswith("vqp_")
    if said["server"] == "nobody":
        return "nobody serves it, but it loads" if served else ""
    if not served:
        return f"{said['server']} serves it, but: {found.get('reason') or found.get('distance')}"
    if (said["server"] == "plugin") != ours:
        return f"{said['server']} serves it, but {found['method']} did"
    if (said["in_tree"] is None) != in_tree:
        return f"vLLM alone: {said['in_tree'] or 'serves it'}, but: {without.get('reason') or without.get('distance')}"
    return ""


def describe(row: dict[str, Any]) -> str:
    if "refused" in row:
        return f"refused: {row['refused']}"
    said, found = row.get("verdict") or {}, row.get("plugin", {})
    alone = row.get("alone", {})
    return (
        f"{said.get('method') if said.get('server') == 'plugin' else said.get('server')}: {found.get('result')} "
        f"{found.get('distance', '')}; vLLM alone: {alone.get('result')}"
    )


def main() -> int:
    from tests.support.grid_sources import sources

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sources", nargs="*", metavar="SOURCE", help="default: all")
    parser.add_argument("--out", type=Path, default=ROOT / "build/grid.json", help="JSON file for the rows")
    parser.add_argument("--limit", type=int, default=600, help="seconds for the end of a process")
    parser.add_argument("--batch", type=int, default=8, help="sources per process")
    options = parser.parse_args()
    kept = json.loads(options.out.read_text()) if options.out.exists() else {"rows": []}
    done = {row["source"] for row in kept["rows"]}
    names = options.sources or [source.name for source in sources() if source.name not in done]
    table = {(r["source"], r["target"]): r for r in kept["rows"] if r["source"] not in names}
    for first in range(0, len(names), options.batch):
        batch = names[first : first + options.batch]
        with tempfile.TemporaryDirectory() as folder:
            found: dict[tuple[str, str], dict[str, Any]] = {}
            for mode in ("plugin", "alone"):
                for row in run(mode, Path(folder), batch, options.limit):
                    found.setdefault((row["source"], row["target"]), {}).update(row)
        for key, row in found.items():
            row["contradiction"] = agrees(row)
            mark = "  <-- " + row["contradiction"] if row["contradiction"] else ""
            print(f"{key[0]:28} {key[1] or 'as it is':18} {describe(row)}{mark}", flush=True)
        table |= found
        write(options.out, list(table.values()))
    return int(any(row["contradiction"] for row in table.values()))


def write(out: Path, rows: list[dict[str, Any]]) -> None:
    """The rows, and where they were found."""
    from vllm_quant_plugin.compat import vllm_version
    from vllm_quant_plugin.formats import Host

    flags = [flag for flag in FLAGS if flag in Host.local("cpu").cpu_flags]
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    about = json.dumps({"vllm": vllm_version(), "device": "cpu", "cpu_flags": flags})
    out.write_text(f'{{\n "about": {about},\n "rows": [\n{lines}\n ]\n}}\n')


if __name__ == "__main__":
    sys.exit(main())
