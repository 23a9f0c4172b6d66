"""One server process with its process session (setsid(2)), its guard and its log."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from vllm_quant_serve.server import SUPERVISOR_PID
from vllm_quant_serve.supervise import guard as guard_module
from vllm_quant_serve.supervise.guard import end_process_session, process_session_members

_PR_SET_CHILD_SUBREAPER = 36
TAIL_LINES = 2000


def become_subreaper() -> None:
    """Make orphaned descendants children of this process, so that they can be waited for (prctl(2))."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Guard:
    """The guard process and the pipe to it (see guard.py)."""

    def __init__(self, run_dir: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", guard_module.__file__, str(run_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def watch(self, sid: int) -> None:
        """End the process session ``sid`` when the supervisor ends."""
        self._write(f"+{sid}\n")

    def release(self, sid: int) -> None:
        """Forget a process session that has ended."""
        self._write(f"-{sid}\n")

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        except BrokenPipeError:  # the guard was killed; the supervisor still ends the process session itself
            return

    def close(self) -> None:
        """Let the guard finish: it ends what it still watches."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()


class LogPump(threading.Thread):
    """Copies the server's output to a descriptor and keeps the last lines.

    A thread of its own: a slow terminal must hold up neither the event loop nor, beyond the
    pipe's buffer, the server.
    """

    def __init__(self, source: int, sink: int, on_line: Callable[[str], None] | None = None) -> None:
        super().__init__(name="server-log", daemon=True)
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._source, self._sink, self._on_line = source, sink, on_line

        self._copying = threading.Lock()

    def redirect(self, sink: int) -> None:
        """Copy to ``sink`` from now on; the descriptor before, a file, is no longer used then."""
        with self._copying:
            self._sink = sink

    def run(self) -> None:
        pending = b""
        while chunk := os.read(self._source, 65536):
            self._copy(chunk)
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                self._line(line)
        if pending:
            self._line(pending)
        os.close(self._source)

    def _copy(self, chunk: bytes) -> None:
        view = memoryview(chunk)
        try:
            with self._copying:
                while view:
                    view = view[os.write(self._sink, view) :]
        except OSError:  # nobody reads our output any more; the server must not stop for that
            return

    def _line(self, raw: bytes) -> None:
        line = raw.decode("utf-8", "replace").rstrip("\r")
        self.tail.append(line)
        if self._on_line is not None:
            self._on_line(line)


class ServerProcess:
    """A started server. Get one from ``start``; its process session has its pid as id."""

    def __init__(self, process: asyncio.subprocess.Process, pump: LogPump, guard: Guard) -> None:
        self.process, self.pump, self._guard = process, pump, guard
        self.exited = asyncio.ensure_future(process.wait())

    @classmethod
    async def start(
        cls,
        argv: Sequence[str],
        environment: Mapping[str, str],
        guard: Guard,
        on_line: Callable[[str], None] | None = None,
        log_to: int = 2,
    ) -> ServerProcess:
        """Start ``argv`` in a process session of its own, with ``environment`` added to ours."""
        source, sink = os.pipe()
        pump = LogPump(source, log_to, on_line)
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
                env={**os.environ, **environment, SUPERVISOR_PID: str(os.getpid())},
            )
        except BaseException:
            os.close(source)
            raise
        finally:
            os.close(sink)
        guard.watch(process.pid)
        pump.start()
        return cls(process, pump, guard)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return not self.exited.done()

    def send(self, number: int) -> None:
        """Signal the first process; vLLM passes shutdown on to its own children."""
        if self.alive:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return

    async def stop(self, timeout: float, *, force: asyncio.Event) -> tuple[int, bool]:
        """SIGTERM, then SIGKILL for the whole process session after ``timeout`` seconds, at once when ``force`` is set.

        Returns:
            The exit status as subprocess gives it (negative: signal), and whether it took the SIGKILL.
        """
        self.send(signal.SIGTERM)
        forced = asyncio.ensure_future(force.wait())
        await asyncio.wait([self.exited, forced], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        forced.cancel()
        killed = self.alive
        return await self.kill(), killed

    async def kill(self) -> int:
        """SIGKILL for the whole process session, then wait until nothing of it is left."""
        await asyncio.to_thread(end_process_session, self.pid)
        status = await self.exited
        self._reap()
        self._guard.release(self.pid)
        await asyncio.to_thread(self.pump.join, 5.0)
        return status

    def leftovers(self) -> list[int]:
        """Processes of its process session that still live."""
        return process_session_members(self.pid)

    def _reap(self) -> None:
        """Wait for the descendants that became our children when their parent died."""
        while True:
            try:
                pid, _ = os.waitpid(-self.pid, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return


def describe_status(status: int) -> str:
    """An exit status, as subprocess gives it, in words."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
