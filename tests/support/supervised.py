"""Runs the supervisor in a process of its own and looks at it from outside, as an operator would."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Supervised:
    """A running ``vllm-quant serve`` or its fake; use it as a context manager.

    Attributes:
        port: where the server listens.
        events: those seen so far.
    """

    def __init__(
        self,
        *words: str,
        options: dict[str, Any] | None = None,
        command: list[str] | None = None,
        port: int | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.port = port or free_port()
        self.events: list[dict[str, Any]] = []
        self._queue: queue.Queue[str | None] = queue.Queue()
        # Runs in a private temporary folder, so that a leftover is seen.
        self.scratch = tempfile.mkdtemp(prefix="vqp-test-")
        program = command or [sys.executable, str(HERE / "run_supervised.py"), json.dumps(options or {}), "fake/model"]
        self.log = open(os.path.join(self.scratch, "log"), "w+b")  # noqa: SIM115
        self.process = subprocess.Popen(
            [*program, "--port", str(self.port), *words],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env={**os.environ, "TMPDIR": self.scratch, **(environment or {})},
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(line)
        self._queue.put(None)

    def wait_event(self, name: str, timeout: float = 60.0) -> dict[str, Any]:
        """The next event called ``name``; those before it are kept in ``events``."""
        deadline = time.monotonic() + timeout
        while True:
            line = self._queue.get(timeout=max(deadline - time.monotonic(), 0.01))
            if line is None:
                raise AssertionError(f"ended before {name!r}: {self.events}\n{self.logged()}")
            event = json.loads(line)
            self.events.append(event)
            if event.get("event") == name:
                return event

    def wait_exit(self, timeout: float = 60.0) -> int:
        """The exit code; the events that were left are in ``events``."""
        code = self.process.wait(timeout)
        while (line := self._queue.get(timeout=10)) is not None:
            self.events.append(json.loads(line))
        return code

    def names(self) -> list[str]:
        return [event.get("event", "error" if "error" in event else "") for event in self.events]

    def event(self, name: str) -> dict[str, Any]:
        """The last event called ``name`` so far."""
        return next(event for event in reversed(self.events) if event.get("event") == name)

    def error(self) -> dict[str, Any]:
        return next(event["error"] for event in self.events if "error" in event)

    def server_pid(self) -> int:
        return next(event["pid"] for event in reversed(self.events) if event.get("event") == "started")

    def descendants(self) -> list[psutil.Process]:
        """Every process below the supervisor, the guard included."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def send(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def logged(self) -> str:
        self.log.seek(0)
        return self.log.read().decode("utf-8", "replace")

    def run_dirs(self) -> list[Path]:
        return list(Path(self.scratch).glob("vqp-serve-*"))

    def __enter__(self) -> Supervised:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.log.close()


def wait_gone(processes: list[psutil.Process], timeout: float = 15.0) -> list[psutil.Process]:
    """The processes that still run after ``timeout`` seconds (zombies do not run)."""
    deadline = time.monotonic() + timeout
    while True:
        left = [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


def can_bind(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
