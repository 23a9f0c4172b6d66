"""Every text-generation family of vLLM's registry, served by every method of this plugin: ``make test-families``.

    python benchmarks/families.py [--out FILE] [--limit SECONDS] [FAMILY ...]

Each family is a tiny random checkpoint made from transformers' config (tests/support/families.py), in a process of its
own with a time limit. The prompt logits are compared with those of the dequantized reference, which vLLM serves
unquantized. Prints a table; FILE gets every row as JSON and, where it exists, keeps the rows of other families.
Exit code 1 where a result is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR", "TOKENIZERS_PARALLELISM": "false", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}  # fmt: skip


def registered() -> list[str]:
    """Names of the architectures in vLLM's registry of text-generation models."""
    from vllm.model_executor.models.registry import _TEXT_GENERATION_MODELS

    return list(_TEXT_GENERATION_MODELS)


def serve(family: str, limit: int) -> list[dict[str, Any]]:
    """The rows of one family."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.support.run_family", family, folder]
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=os.environ | ENVIRONMENT, timeout=limit, capture_output=True, text=True
            )
            text, end = done.stdout, f"the process ended with code {done.returncode}" if done.returncode else ""
        except subprocess.TimeoutExpired as late:
            text = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
            end = f"more than {limit} s"
    rows = [json.loads(line.removeprefix("ROW ")) for line in text.splitlines() if line.startswith("ROW ")]
    return [*rows, {"family": family, "method": "", "result": "skipped", "reason": end}] if end else rows


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="default: all that vLLM registers")
    parser.add_argument("--out", type=Path, help="JSON file for the rows")
    parser.add_argument("--limit", type=int, default=600, help="seconds for a family")
    options = parser.parse_args()
    wrong = 0
    for family in options.families or registered():
        rows = serve(family, options.limit)
        for row in rows:
            wrong += row["result"] == "wrong"
            detail = row.get("reason") or f"distance {row['distance']:.2g}, {row['same_tokens']} continuations equal"
            print(f"{family:32} {row['method']:12} {row['result']:8} {detail}", flush=True)
        if options.out:
            kept = json.loads(options.out.read_text()) if options.out.exists() else []
            kept = [row for row in kept if row["family"] != family] + rows
            options.out.write_text("[\n" + ",\n".join(json.dumps(row) for row in kept) + "\n]\n")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
