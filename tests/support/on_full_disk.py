"""Quantize or convert again and again while the disk is full from the n-th write call on, for several n.

Started with ``full_disk.c`` preloaded, as ``on_full_disk.py LIBRARY FOLDER JOB``: JOB is a JSON object of the model, the
method and its options, or the target of a conversion, and how many n are tried. Prints one JSON line for each run: the call that failed, the exit code,
the message, and what is left in the folder. Each run is a fork of this process, which has imported everything.
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
    # Allowed every call, it succeeds and says how many there are.
    calls = run_child(library, folder, job, 1 << 40)
    points = int(job["points"])
    for call in sorted({0, 1, calls - 1, *(calls * i // points for i in range(points))}):
        run_child(library, folder, job, call)


def run_child(library: ctypes.CDLL, folder: Path, job: dict[str, Any], call: int) -> int:
    """``attempt`` in a fork, whose line is printed; returns the number of write calls."""
    sys.stdout.flush()
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        found = attempt(library, folder, job, call)
        print(json.dumps(found), flush=True)
        os.write(write_end, str(found["calls"]).encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as answer:
        calls = int(answer.read())
    os.waitpid(child, 0)
    return calls


if __name__ == "__main__":
    main()
