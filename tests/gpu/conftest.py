"""Puts this folder on the path (a bare machine may have another package named ``tests``), and makes runs resumable.

A kernel that faults takes the process's GPU context with it, and every later test would fail for nothing; one that
hangs says nothing at all. So the tests tell how far they are, end with CONTEXT_LOST after a fault, and go on behind a
test in another process (--resume-after ID). ``scripts/gpu_check.py`` does so.

VQP_GPU_PROGRESS names the file they tell it in: lines of "begun ID", "passed ID", "failed ID", "skipped ID".
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

CONTEXT_LOST = 70

sys.path.insert(0, str(Path(__file__).parent))


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--resume-after", default=None, metavar="ID", help="leave out the tests up to this one")


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    last = config.getoption("--resume-after")
    if last is None:
        return
    ids = [item.nodeid for item in items]
    if last not in ids:
        raise pytest.UsageError(f"--resume-after {last}: no such test")
    cut = ids.index(last) + 1
    config.hook.pytest_deselected(items=items[:cut])
    items[:] = items[cut:]


def tell(word: str, nodeid: str) -> None:
    progress = os.environ.get("VQP_GPU_PROGRESS")
    if progress:
        with open(progress, "a") as file:
            file.write(f"{word} {nodeid}\n")


def pytest_runtest_logstart(nodeid: str) -> None:
    tell("begun", nodeid)


def pytest_runtest_logreport(report: Any) -> None:
    if report.when == "call" or report.outcome != "passed":
        tell(report.outcome, report.nodeid)


def pytest_runtest_logfinish(nodeid: str) -> None:
    if not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        pytest.exit(f"the GPU's context is lost after {nodeid}: {error}", CONTEXT_LOST)
