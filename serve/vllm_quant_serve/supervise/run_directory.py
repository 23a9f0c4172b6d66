"""The run directory: files and shared memory between the supervisor and the server's processes.

It is a private temporary folder; the environment variable ``VQP_RUN_DIR`` names it to the server:

- ``launch.json``, launch metadata: the supervisor writes it before each start, the stat logger reads it;
- ``actual.json``, memory figures from the engine's log, likewise;
- ``draining``, one byte: 1 while new requests are to be refused;
- ``server-PID``, a page that each API server maps: what became of its requests, time of the last engine step;
- ``first-bytes-PID``, another one, see ``first_bytes.py``.

Shared memory costs the request path a few hundred nanoseconds. Nothing is locked, because each page has one writer.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_quant_kernels import env
from vllm_quant_serve.supervise import first_bytes

VARIABLE = "VQP_RUN_DIR"
METADATA_FILE = "launch.json"
ACTUAL_FILE = "actual.json"
DRAIN_FILE = "draining"
PAGE_PREFIX = "server-"
# Requests of the supervisor itself carry it with ``probe_token``: they are no client's, and count in no statistics.
PROBE_HEADER = b"x-vqp-probe"
# In the order of ServerPage: six counts, and the monotonic time of the last engine step.
_LAYOUT = struct.Struct("qqqqqqd")
_STEP_OFFSET = _LAYOUT.size - 8


@dataclass(frozen=True)
class ServerPage:
    """What one API server process reports, the counts since it started.

    A request is in exactly one of these: being received, in flight, or ended. Of the ended ones, those that are neither
    answered nor broken were left by their clients or refused for their size or slowness.

    Attributes:
        in_flight: requests that it has received whole and is answering.
        begun: requests that it has received whole.
        receiving: requests whose head has arrived and whose body has not.
        answered: answers whose last byte was handed to the connection.
        broken: answers that ended early: aborted by vLLM, an error in a stream, status 500 and above.
        refused: requests refused because the server drains.
        last_step: monotonic time of the last engine step; 0 before the first.
    """

    pid: int
    in_flight: int
    begun: int
    receiving: int
    answered: int
    broken: int
    refused: int
    last_step: float

    @property
    def unfinished(self) -> int:
        """Requests that still wait for their last byte."""
        return self.in_flight + self.receiving


class RunDirectory:
    """The supervisor's side of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path / DRAIN_FILE, "wb") as file:
            file.write(b"\0")

    @classmethod
    def create(cls) -> RunDirectory:
        """A fresh folder that only this user can read."""
        return cls(Path(tempfile.mkdtemp(prefix="vqp-serve-")))

    def write_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Hand the launch metadata to the stat logger, in place of what was there."""
        self._write(METADATA_FILE, metadata)

    def write_actuals(self, actuals: Mapping[str, Any]) -> None:
        """Hand memory figures from the engine's log to the stat logger, in place of what was there."""
        self._write(ACTUAL_FILE, actuals)

    def _write(self, name: str, value: Mapping[str, Any]) -> None:
        partial = self.path / (name + ".partial")
        partial.write_text(json.dumps(value), "utf-8")
        partial.replace(self.path / name)

    def set_draining(self, draining: bool) -> None:
        with open(self.path / DRAIN_FILE, "r+b") as file:
            file.write(b"\1" if draining else b"\0")

    def pages(self) -> list[ServerPage]:
        """The pages of all API servers, those of ended processes included."""
        found = []
        for path in self.path.glob(PAGE_PREFIX + "*"):
            raw = path.read_bytes()
            if len(raw) >= _LAYOUT.size:
                found.append(ServerPage(int(path.name[len(PAGE_PREFIX) :]), *_LAYOUT.unpack_from(raw)))
        return found

    def forget_server(self) -> None:
        """Remove the pages and figures of a server that has ended."""
        pages = (page for prefix in (PAGE_PREFIX, first_bytes.PREFIX) for page in self.path.glob(prefix + "*"))
        for path in (*pages, self.path / ACTUAL_FILE):
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


class ServerSide:
    """The server's side of it: this process's page, and the drain flag. Get it from ``attach``."""

    def __init__(self, folder: Path) -> None:
        page = folder / f"{PAGE_PREFIX}{os.getpid()}"
        with open(page, "w+b") as file:
            file.truncate(mmap.PAGESIZE)
            self._page = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        with open(folder / DRAIN_FILE, "rb") as file:
            self._drain = mmap.mmap(file.fileno(), 1, access=mmap.ACCESS_READ)
        self.first_bytes = first_bytes.FirstBytes(folder)
        self._in_flight = self._begun = self._receiving = self._answered = self._broken = self._refused = 0

    @property
    def draining(self) -> bool:
        return self._drain[0] != 0

    def arrive(self) -> None:
        """The head of a request was accepted."""
        self._receiving += 1
        self._publish()

    def begin(self) -> None:
        """An accepted request was received whole."""
        self._receiving -= 1
        self._in_flight += 1
        self._begun += 1
        self._publish()

    def dismiss(self) -> None:
        """An accepted request ended before it was received whole."""
        self._receiving -= 1
        self._publish()

    def end(self, *, answered: bool, broken: bool) -> None:
        """A request in flight ended: its last byte was handed to the connection, or the answer ended early.

        Neither: the client left.
        """
        self._in_flight -= 1
        self._answered += answered
        self._broken += broken
        self._publish()

    def refuse(self) -> None:
        """A request was refused because the server drains."""
        self._refused += 1
        self._publish()

    def _publish(self) -> None:
        counts = (self._in_flight, self._begun, self._receiving, self._answered, self._broken, self._refused)
        struct.pack_into("qqqqqq", self._page, 0, *counts)

    def step(self) -> None:
        """The engine reported a step."""
        struct.pack_into("d", self._page, _STEP_OFFSET, time.monotonic())


_attached: tuple[int, str, ServerSide] | None = None


def attach() -> ServerSide | None:
    """This process's side of the run directory; None without a supervisor (bare ``vllm serve``)."""
    global _attached
    folder = env.text(VARIABLE)
    if not folder or not Path(folder, DRAIN_FILE).exists():
        return None
    if _attached is None or _attached[:2] != (os.getpid(), folder):
        _attached = (os.getpid(), folder, ServerSide(Path(folder)))
    return _attached[2]


def probe_token() -> bytes | None:
    """What the supervisor's own requests carry, a name that only this user can see; None without a supervisor."""
    folder = env.text(VARIABLE)
    return Path(folder).name.encode() if folder else None


def read_metadata() -> dict[str, Any] | None:
    """The launch metadata that the supervisor wrote; None without a supervisor."""
    return _read(METADATA_FILE)


def read_actuals() -> dict[str, Any]:
    """Memory figures from the engine's log, those that are known so far."""
    return _read(ACTUAL_FILE) or {}


def _read(name: str) -> dict[str, Any] | None:
    folder = env.text(VARIABLE)
    if not folder:
        return None
    try:
        loaded = json.loads(Path(folder, name).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return loaded if isinstance(loaded, dict) else None
