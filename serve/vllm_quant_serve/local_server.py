"""``vllm-quant serve`` as a child process of a script, as the demo and the examples use it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from types import TracebackType
from typing import IO, Any

from vllm_quant_plugin.errors import EngineDiedError, StartupError, VqpError


def free_port() -> int:
    """A TCP port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _as_error(error: dict[str, Any]) -> VqpError:
    """The exception for an error that the launcher reported as JSON, by its exit code."""
    kinds = {kind.exit_code: kind for kind in VqpError.__subclasses__()}
    log = f"; what it printed is in {error['log']}" if error.get("log") else ""
    return kinds.get(error["exit_code"], StartupError)(error["message"], error["hint"] + log)


class LocalServer:
    """Serves ``model`` while the ``with`` block runs, then drains it.

    Attributes:
        events: what the launcher reported, oldest first: ``plan``, ``command``, ``started``, ``ready``...
        url: base address, without ``/v1``.
        log: path of the server's log.
    """

    def __init__(self, model: str, flags: Sequence[str] = (), *, port: int | None = None) -> None:
        self.port = port or free_port()
        self.events: list[dict[str, Any]] = []
        self.exit_code: int | None = None
        self._words = [model, "--json", "--port", str(self.port), *flags]
        self._process: subprocess.Popen[str] | None = None
        self._log: IO[bytes] | None = None
        self.log = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def event(self, name: str) -> dict[str, Any]:
        """The last event called ``name``."""
        return next(event for event in reversed(self.events) if event.get("event") == name)

    def __enter__(self) -> LocalServer:
        # A caller with in-process engines sets this for itself; a server needs the default.
        environment = {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
        descriptor, self.log = tempfile.mkstemp(prefix="vqp-server-", suffix=".log")
        self._log = os.fdopen(descriptor, "wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vllm_quant_plugin", "serve", *self._words],
            stdout=subprocess.PIPE, stderr=self._log, text=True, env=environment,
        )  # fmt: skip
        try:
            self._read_until("ready")
        except BaseException:
            self.stop()
            raise
        return self

    def _read_until(self, name: str) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = json.loads(line)
            self.events.append(event)
            if event.get("event") == name:
                return
            if "error" in event:
                raise _as_error(event["error"])
        raise StartupError(f"vllm-quant serve ended with {self._process.wait()}", f"its log is {self.log}")

    def stop(self) -> int:
        """Drain and end the server; its exit code."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        rest, _ = self._process.communicate()
        self.events += [json.loads(line) for line in (rest or "").splitlines() if line.startswith("{")]
        self.exit_code, self._process = self._process.returncode, None
        if self._log is not None:
            self._log.close()
        return self.exit_code

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        code = self.stop()
        if code and kind is None:
            raise EngineDiedError(f"the server ended with exit code {code}", f"its log is {self.log}")
        if not code:
            os.unlink(self.log)
