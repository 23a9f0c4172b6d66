"""What happens when a part of a running server is killed or stopped, with the real vLLM on the bundled model.

    python benchmarks/serve_faults.py [--only NAME] [--json]

For each fault a server is started and kept busy, the fault is injected, and these are measured: seconds until
``/readyz`` says no, seconds until the launcher has ended, its exit code, processes left, and whether the port
is free. Gates: unready within 5 s of a kill (30 s of a stop), ended within 10 s more, nothing left.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import psutil

import vllm_quant_plugin

BUNDLED = Path(vllm_quant_plugin.__file__).parent / "data" / "stdlib-llama"
HANG_TIMEOUT = 15


@dataclass
class Result:
    """One fault. ``unready`` and ``ended`` are seconds after it."""

    fault: str
    unready: float | None
    ended: float
    exit_code: int
    left: int
    port_free: bool
    good: bool


class Server:
    """A busy ``vllm-quant serve``."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vllm_quant_plugin", "serve", str(BUNDLED), "--json", "--port", str(self.port),
             "--max-model-len", "512", "--enforce-eager", "--kv-cache-memory-bytes", "64M",
             "--hang-timeout", str(HANG_TIMEOUT), "--served-model-name", "m"],
            stdout=subprocess.PIPE, stderr=self.log, text=True,
        )  # fmt: skip
        self.admin = ""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = json.loads(line)
            if event.get("event") == "admin":
                self.admin = event["url"]
            if event.get("event") == "ready":
                break
        else:
            self.log.seek(0)
            raise SystemExit(f"the server did not start:\n{self.log.read().decode()[-3000:]}")
        # Nobody reads further events; the pipe must not fill.
        threading.Thread(target=self.process.stdout.read, daemon=True).start()
        self.tree = psutil.Process(self.process.pid).children(recursive=True)
        self.stop = threading.Event()
        for _ in range(4):
            threading.Thread(target=self._load, daemon=True).start()
        time.sleep(2.0)

    def _load(self) -> None:
        body = {"model": "m", "prompt": "import os", "max_tokens": 400, "ignore_eos": True}
        while not self.stop.is_set():
            try:
                httpx.post(f"http://127.0.0.1:{self.port}/v1/completions", json=body, timeout=300)
            except httpx.HTTPError:
                time.sleep(0.2)

    def part(self, name: str) -> psutil.Process:
        """The process whose title or command line holds ``name``."""
        for process in self.tree:
            if name in " ".join(process.cmdline()):
                return process
        raise SystemExit(f"no process is called {name}: {[p.cmdline() for p in self.tree]}")

    def unready(self, begin: float, limit: float) -> float | None:
        """Seconds after ``begin`` at which /readyz no longer says yes, or is gone."""
        while time.monotonic() - begin < limit:
            try:
                if httpx.get(f"{self.admin}/readyz", timeout=2).status_code != 200:
                    return time.monotonic() - begin
            except httpx.HTTPError:
                return time.monotonic() - begin
            time.sleep(0.05)
        return None

    def port_free(self) -> bool:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self.port))
            except OSError:
                return False
            return True


def kill(name: str) -> Callable[[Server], None]:
    return lambda server: server.part(name).kill()


FAULTS: dict[str, tuple[Callable[[Server], None], float]] = {
    "kill -9 EngineCore": (kill("VLLM::EngineCore"), 5.0),
    "kill -9 worker": (kill("VLLM::Worker"), 5.0),
    "kill -9 API server": (kill("vllm_quant_serve.server"), 5.0),
    "kill -9 supervisor": (lambda server: server.process.kill(), 5.0),
    "SIGSTOP EngineCore": (lambda server: server.part("VLLM::EngineCore").suspend(), 30.0),
    "SIGTERM supervisor": (lambda server: server.process.send_signal(signal.SIGTERM), 5.0),
}


def inject(name: str) -> Result:
    fault, patience = FAULTS[name]
    server = Server()
    begin = time.monotonic()
    fault(server)
    unready = server.unready(begin, patience + 60)
    code = server.process.wait(120)
    server.stop.set()
    deadline = time.monotonic() + 10
    while True:
        left = [p for p in server.tree if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    ended = time.monotonic() - begin
    free = server.port_free()
    for process in left:
        process.kill()
    good = unready is not None and unready <= patience and ended <= patience + 10 and not left and free
    if name == "SIGTERM supervisor":
        # It waits for what is in flight: only the end counts.
        good = unready is not None and unready <= patience and code == 0 and not left and free
    return Result(name, unready, ended, code, len(left), free, good)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(FAULTS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    results = []
    for name in [options.only] if options.only else FAULTS:
        results.append(inject(name))
        if not options.json:
            one = results[-1]
            unready = "-" if one.unready is None else f"{one.unready:.1f} s"
            port = "free" if one.port_free else "held"
            print(f"{'ok ' if one.good else 'BAD'} {one.fault:20} unready {unready:>7}, ended {one.ended:5.1f} s, "
                  f"exit {one.exit_code:4}, left {one.left}, port {port}", flush=True)  # fmt: skip
    if options.json:
        print(json.dumps([asdict(one) for one in results], indent=2))
    sys.exit(0 if all(one.good for one in results) else 1)


if __name__ == "__main__":
    main()
