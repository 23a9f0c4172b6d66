"""Wall and CPU time of a cold ``vllm-quant plan``: a new process for each run, table and JSON.

python benchmarks/plan_cold_start.py [--runs 10] [MODEL]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

BUNDLED = Path(__file__).parents[1] / "vllm_quant_plugin" / "data" / "stdlib-llama"


def measure(arguments: list[str], runs: int) -> tuple[list[float], list[float]]:
    """Seconds of wall and of CPU time of each run."""
    walls, cpus = [], []
    for _ in range(runs):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "vllm_quant_plugin", *arguments], check=True, stdout=subprocess.DEVNULL)
        walls.append(time.perf_counter() - start)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return walls, cpus


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(BUNDLED))
    parser.add_argument("--runs", type=int, default=10)
    arguments = parser.parse_args()
    for name, extra in (("table", []), ("JSON", ["--json"])):
        walls, cpus = measure(["plan", arguments.model, "--gpu", "h100:4", *extra], arguments.runs)
        print(
            f"{name}: wall median {statistics.median(walls):.3f} s, minimum {min(walls):.3f} s; "
            f"CPU median {statistics.median(cpus):.3f} s; {arguments.runs} runs"
        )


if __name__ == "__main__":
    main()
