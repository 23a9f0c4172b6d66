"""Every kernel family on this machine's GPU, each in a process of its own, as `vllm-quant verify-kernels` does.

    python scripts/gpu_families.py --seconds N --json FILE

Needs torch and nvidia-smi. A family whose process died is run again under compute-sanitizer, where there is one, which
names the kernel and the instruction. FILE is written after every family. Exit 1: one is not right.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "kernels"))  # where the package is not installed

from vllm_quant_kernels.cuda.verify import machine  # noqa: E402
from vllm_quant_kernels.cuda.verify.machine import Gpu  # noqa: E402
from vllm_quant_kernels.cuda.verify.run import CHILD, CORRECTNESS_SHARE, Verification  # noqa: E402
from vllm_quant_kernels.cuda.verify.verdict import Finding  # noqa: E402

SANITIZED_SECONDS, SANITIZED_FAMILIES = 45.0, 4


def smi_gpu() -> Gpu:
    """The first GPU, by nvidia-smi: a bare machine may have no NVML for Python. Raises OSError or ValueError."""
    query = "uuid,name,driver_version,compute_cap"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    uuid, name, driver, capability = (field.strip() for field in answer.split(","))
    major, minor = capability.split(".")
    return Gpu(0, uuid, name, driver, (int(major), int(minor)))


def sanitized(name: str, gpu: Gpu) -> list[str]:
    """What compute-sanitizer says of a family: its first lines; nothing without it."""
    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if tool is None:
        return []
    command = [tool, *(word.replace("{report}", "1") for word in CHILD), "check", name]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu.uuid, "VQP_CUDA_KERNELS": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SANITIZED_SECONDS, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return ["the sanitizer did not end in time"]
    lines = (done.stdout + done.stderr).splitlines()
    return [line.strip()[:200] for line in lines if " at " in line or "Error" in line or "Invalid" in line][:4]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT / "kernels"), os.environ.get("PYTHONPATH")]))
    gpu, end = smi_gpu(), time.monotonic() + arguments.seconds
    key = machine.key_of(gpu)
    if key is None:
        print("libvqp_cuda.so is not there", file=sys.stderr)
        return 1
    rows: dict[str, dict[str, Any]] = {}

    def found(name: str, finding: Finding) -> None:
        rows[name] = asdict(finding)
        write(arguments.json, rows)
        print(f"{name:22} {finding.status:10} {finding.seconds:5.1f} s  {finding.reason}", flush=True)

    # All of the time is correctness's: what is timed has steps of its own.
    Verification(gpu, key, arguments.seconds / CORRECTNESS_SHARE, classes=(), found=found).run()
    broken = [name for name, row in rows.items() if row["status"] == "died"][:SANITIZED_FAMILIES]
    for name in broken if end - time.monotonic() > SANITIZED_SECONDS else ():
        rows[name]["sanitizer"] = sanitized(name, gpu)
        write(arguments.json, rows)
        print(f"{name:22} sanitizer: {'; '.join(rows[name]['sanitizer'])}", flush=True)
    return int(any(row["status"] not in ("right", "absent") for row in rows.values()))


def write(path: Path, rows: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".new")
    partial.write_text(json.dumps(rows, indent=1) + "\n")
    partial.replace(path)


if __name__ == "__main__":
    raise SystemExit(main())
