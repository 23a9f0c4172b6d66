"""A child process with a time limit, whose lines of JSON arrive on a pipe. Nothing it does harms this one. No torch."""

from __future__ import annotations

import json
import math
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

# What a child may send, and a line may be long.
MAX_BYTES, MAX_LINE = 4 << 20, 1 << 16
# Seconds in which a killed process has to be gone: one that waits for the driver may not be.
REAPING = 10.0

Line = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        how: ``exited``; ``signal``; ``late``, killed after its limit; ``garbage``, killed because it sent something
            else than objects of JSON; ``stuck``, killed, and still there.
        code: exit status or number of the signal.
        output: the last line that it printed.
    """

    how: Literal["exited", "signal", "late", "garbage", "stuck"]
    code: int = 0
    output: str = ""


def run_child(
    command: Sequence[str], limit: float, on_line: Line, environment: Mapping[str, str], quiet: float = math.inf
) -> Ended:
    """Run ``command``, in which the pipe's descriptor takes the place of ``{report}``.

    Args:
        limit: seconds that it may take.
        quiet: seconds that it may take between two lines.
    """
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    words = [word.replace("{report}", str(write_end)) for word in command]
    with tempfile.TemporaryFile() as log:
        try:
            child = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(write_end,),
                start_new_session=True, env=dict(environment),
            )  # fmt: skip
        except OSError as error:
            os.close(read_end)
            return Ended("exited", 127, str(error))
        finally:
            os.close(write_end)
        try:
            fault = _read(child, read_end, time.monotonic() + limit, quiet, on_line)
            if fault is None:
                with suppress(subprocess.TimeoutExpired):
                    child.wait(REAPING)
                fault = "late" if child.poll() is None else None
        finally:
            gone = _kill(child)
            os.close(read_end)
        output = _last_line(log)
    if not gone:
        return Ended("stuck", 0, output)
    if fault is not None:
        return Ended(fault, 0, output)
    code = child.returncode
    return Ended("signal", -code, output) if code < 0 else Ended("exited", code, output)


def _read(
    child: subprocess.Popen[bytes], pipe: int, deadline: float, quiet: float, on_line: Line
) -> Literal["late", "garbage"] | None:
    """Pass the child's lines on until it has closed the pipe or ended."""
    rest, total, heard = b"", 0, time.monotonic()
    while True:
        left = min(deadline, heard + quiet) - time.monotonic()
        if left <= 0:
            return "late"
        ended = child.poll() is not None
        if not select.select([pipe], [], [], 0 if ended else min(left, 0.2))[0]:
            if ended:
                return "garbage" if rest else None
            continue
        data = os.read(pipe, 1 << 16)
        if not data:
            return "garbage" if rest else None
        total, heard = total + len(data), time.monotonic()
        *lines, rest = (rest + data).split(b"\n")
        if total > MAX_BYTES or len(rest) > MAX_LINE:
            return "garbage"
        for line in lines:
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                return "garbage"
            if not isinstance(value, dict):
                return "garbage"
            on_line(value)


def _kill(child: subprocess.Popen[bytes]) -> bool:
    """Kill the child and what it started; whether it is gone."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    try:
        child.wait(REAPING)
    except subprocess.TimeoutExpired:
        return False
    return True


def _last_line(log: Any) -> str:
    """The last line of what the child printed."""
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - 4096))
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return "".join(c if c.isprintable() else " " for c in lines[-1])[:200] if lines else ""
