"""Whole runs killed with SIGKILL at random moments, resumed until they end: every result must be the same.

    python benchmarks/quantize_kills.py [--kills 25] [-m gptq] [--model MODEL]

One run is not interrupted; all others must give the same SHA-256 of every file. For each of ``--kills`` results, a run
is started, killed after a random share of the uninterrupted run's time, and started again with --resume; runs killed
before anything was kept count too and are listed. A run that ends before its kill is compared but does not count: the
machine has become faster, and the next runs are killed within the time that this one took.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from vllm_quant_plugin.quantize.io.report import hash_tensor_files
from vllm_quant_plugin.text.windows import BUNDLED

_PROGRAM = "import sys; from vllm_quant_plugin.cli import main; main(sys.argv[1:])"


def start(model: Path, output: Path, flags: list[str]) -> subprocess.Popen[bytes]:
    """``vllm-quant quantize`` as a process, quiet."""
    command = [sys.executable, "-c", _PROGRAM, "quantize", str(model), "-o", str(output), "--no-eval", *flags]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end; any failure ends the benchmark."""
    _, error = process.communicate()
    if process.returncode:
        raise SystemExit(f"a run failed: {error.decode().strip()[-500:]}")


def leftovers(folder: Path) -> list[str]:
    """Hidden files that a finished run should have cleaned up."""
    return sorted(p.name for p in folder.iterdir() if p.name.startswith("."))


def kill_once(model: Path, output: Path, flags: list[str], delay: float) -> str | None:
    """Start, kill after ``delay`` seconds, resume to the end.

    Returns:
        The stage that the kill interrupted, None for a run that had ended.
    """
    process = start(model, output, flags)
    try:
        process.wait(timeout=delay)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    else:
        finish(process)
        return None
    state = output.with_name(f".{output.name}.resume") / "state.json"
    layers = json.loads(state.read_text())["layers"] if state.exists() else 0
    if output.exists():
        # Killed between the renaming and the clean-up: the result exists and is complete.
        return "after the renaming"
    finish(start(model, output, [*flags, "--resume"]))
    return f"{layers} layers kept"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLED)
    parser.add_argument("-m", "--method", default="gptq")
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    flags = ["-m", options.method, "--calibration-samples", str(options.samples), "--seq-len", "128"]
    chance, met = random.Random(options.seed), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="vqp-kills-") as scratch:
        whole = Path(scratch) / "whole"
        started = time.monotonic()
        finish(start(options.model, whole, flags))
        seconds, expected = time.monotonic() - started, hash_tensor_files(whole)
        print(f"{options.method}: a whole run takes {seconds:.1f} s", flush=True)
        while met.total() < options.kills:
            output = Path(scratch) / f"out-{met.total() + 1}"
            delay, started = chance.uniform(0, seconds), time.monotonic()
            what = kill_once(options.model, output, flags, delay)
            same = hash_tensor_files(output) == expected
            said = "identical" if same else "DIFFERENT"
            if what is None:
                seconds = time.monotonic() - started
                print(f"   -: ended after {seconds:.1f} s: {said}", flush=True)
            else:
                met[what] += 1
                print(f"  {met.total():2}: killed after {delay:5.1f} s, {what}: {said}", flush=True)
            if not same:
                raise SystemExit("a resumed run differs")
            shutil.rmtree(output)
        print(f"{options.kills} kills, {options.kills} identical results: {dict(met)}")
        print(f"left behind: {leftovers(whole.parent) or 'nothing'}")


if __name__ == "__main__":
    main()
