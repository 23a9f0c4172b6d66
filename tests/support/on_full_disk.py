"""Quantize or convert again and again while the disk is full from the n-th write call on, for several n.

Started with ``full_disk.c`` preloaded, as ``on_full_disk.py LIBRARY FOLDER JOB``. JOB is a JSON object: the model; the
method and its options, or the target of a conversion; how many n are tried. One JSON line for each run: the call that
failed, the exit code, the message, and what is left in the folder. Each run but the first, which succeeds, is a fork of
this process.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from vllm_quant_plugin.console import discard_log
from vllm_quant_plugin.convert.api import convert_model
from vllm_quant_plugin.errors import VqpError
from vllm_quant_plugin.quantize.api import make_recipe, quantize_model
from vllm_quant_plugin.quantize.engine import layered_model, run  # noqa: F401


def attempt(library: ctypes.CDLL, folder: Path, job: dict[str, Any], call: int) -> dict[str, Any]:
    """One run in this process."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    library.full_disk(os.fsencode(folder), ctypes.c_long(call))
    found: dict[str, Any] = {"call": call, "code": 0, "message": ""}
    try:
        if "to" in job:
            convert_model(job["model"], folder / "out", job["to"])
        else:
            quantize_model(job["model"], folder / "out", make_recipe(job["method"], **job["options"]))
    except VqpError as error:
        found |= {"code": error.exit_code, "message": str(error)}
    except BaseException as error:
        found |= {"code": 1, "message": repr(error)}
    return found | {"left": sorted(p.name for p in folder.iterdir()), "calls": library.full_disk_calls()}


def main() -> None:
    library, folder, job = ctypes.CDLL(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    library.full_disk_calls.restype = ctypes.c_long
    torch.set_num_threads(1)
    # Allowed every call, it succeeds and says how many there are; the forks inherit what it imports.
    first = attempt(library, folder, job, 1 << 40)
    print(json.dumps(first), flush=True)
    calls = first["calls"]
    points = int(job["points"])
    for call in sorted({0, 1, calls - 1, *(calls * i // points for i in range(points))}):
        run_child(library, folder, job, call)


def run_child(library: ctypes.CDLL, folder: Path, job: dict[str, Any], call: int) -> None:
    """``attempt`` in a fork, whose line is printed."""
    child = os.fork()
    if child == 0:
        print(json.dumps(attempt(library, folder, job, call)), flush=True)
        discard_log()
        os._exit(0)
    os.waitpid(child, 0)


if __name__ == "__main__":
    main()
