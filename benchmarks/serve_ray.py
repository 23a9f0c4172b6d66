"""Two Ray nodes on loopback: the lines of ``--emit ray`` with a real Ray and vLLM's CPU engine.

    python benchmarks/serve_ray.py

Needs Ray beside this package (``pip install ray``); no lock contains it. Two Ray nodes of one device each are started
on this machine by the emitted script, its head serves the bundled model with two tensor-parallel ranks, one on each
node. Checked: a completion comes, SIGTERM drains with exit code 0, and no rank is left; then the same with one rank
killed: exit code 5. Results are kept in ``benchmarks/results/serve_ray.json``.

The limit: vLLM's CPU platform names no Ray resource, and refuses ("current platform cpu does not support ray"). Here
a module that Python imports first (sitecustomize) makes it count the nodes' nominal GPUs. Everything else (Ray, its
placement group, executor and actors, the collective operations of the ranks) is the code that serves on GPUs.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from serve_harness import BUNDLED, SMALL, free_port, keep, left_after

from vllm_quant_serve.deploy import Deployment, Target, emit
from vllm_quant_serve.flags import parse_args
from vllm_quant_serve.launch import build_launch
from vllm_quant_serve.planning import Machines
from vllm_quant_serve.supervise.options import SuperviseOptions

HOOK = """
import importlib.abc, importlib.util, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "vllm.platforms.cpu":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            module.CpuPlatform.ray_device_key = "GPU"

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


class Cluster:
    """The emitted script, run twice: as the head and as a worker."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        words = [str(BUNDLED), *SMALL, "--tensor-parallel-size", "2", "--distributed-executor-backend", "ray",
                 "--port", str(self.port)]  # fmt: skip
        launch = build_launch(parse_args(words), [])
        own = ("--no-plan", "--json")
        admin = free_port()
        text = emit(Target.RAY, Deployment(launch, None, SuperviseOptions(), Machines(2, 1), own, admin_port=admin))
        self.script = folder / "ray.sh"
        self.script.write_text(text)
        (folder / "hook").mkdir()
        (folder / "hook" / "sitecustomize.py").write_text(HOOK)
        # The program of this environment, whether or not it is installed there.
        program = folder / "vllm-quant"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m vllm_quant_plugin "$@"\n')
        program.chmod(0o755)
        self.environment = {
            **os.environ, "PATH": os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(folder / "hook"), "HF_HUB_OFFLINE": "1", "VLLM_HOST_IP": "127.0.0.1",
            "RAY_TMPDIR": str(folder), "VLLM_CPU_OMP_THREADS_BIND": "0|0",
            "RAY_memory_monitor_refresh_ms": "0", "VQP_LEDGER": str(folder / "ledger"),
        }  # fmt: skip
        self.log = open(folder / "log", "wb")  # noqa: SIM115
        self.head = self._run("head")

    def _run(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(["sh", str(self.script), *words], stdout=subprocess.PIPE, stderr=self.log, text=True,
                                env=self.environment)  # fmt: skip

    def join(self) -> None:
        """Start the worker once the head's Ray answers."""
        ask = [str(Path(sys.executable).with_name("ray")), "health-check", "--address", "127.0.0.1:6379"]
        while subprocess.run(ask, env=self.environment, capture_output=True).returncode:
            assert self.head.poll() is None, "the head ended"
            time.sleep(1)
        self.worker = self._run("worker", "127.0.0.1")

    def until_ready(self) -> float:
        assert self.head.stdout is not None
        for line in self.head.stdout:
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "ready":
                return float(event["load_seconds"])
        raise SystemExit(f"not ready:\n{(self.folder / 'log').read_text()[-3000:]}")

    def members(self) -> list[psutil.Process]:
        """Every process of this cluster: its private folder or socket is in its environment or command line."""
        found = []
        for process in psutil.process_iter():
            try:
                if str(self.folder) in " ".join(process.cmdline()) or process.environ().get("RAY_TMPDIR") == str(
                    self.folder
                ):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def ranks(self) -> list[psutil.Process]:
        return [process for process in self.members() if "RayWorkerProc" in " ".join(process.cmdline())]


@contextmanager
def cluster() -> Iterator[Cluster]:
    # It holds Ray's sockets, whose paths must be short.
    folder = Path(tempfile.mkdtemp(prefix="vqr", dir="/tmp"))
    one = Cluster(folder)
    try:
        yield one
    finally:
        for process in one.members():
            process.kill()
        one.log.close()
        shutil.rmtree(folder, ignore_errors=True)


def serve_and_drain() -> dict[str, Any]:
    with cluster() as one:
        one.join()
        loaded = one.until_ready()
        ranks = one.ranks()
        body = {"model": "m", "prompt": "import os", "max_tokens": 32, "temperature": 0, "ignore_eos": True}
        answer = httpx.post(f"http://127.0.0.1:{one.port}/v1/completions", json=body, timeout=300).json()
        one.head.send_signal(signal.SIGTERM)
        code = one.head.wait(120)
        left = left_after(ranks, 20)
    tokens = answer["usage"]["completion_tokens"]
    good = tokens == 32 and len(ranks) == 2 and code == 0 and not left
    return {"load_seconds": loaded, "ranks": len(ranks), "tokens": tokens, "text": answer["choices"][0]["text"],
            "exit_code": code, "ranks_left": len(left), "good": good}  # fmt: skip


def kill_a_rank() -> dict[str, Any]:
    with cluster() as one:
        one.join()
        one.until_ready()
        ranks = one.ranks()
        begin = time.monotonic()
        ranks[-1].kill()
        code = one.head.wait(120)
        seconds, left = time.monotonic() - begin, left_after(ranks, 20)
    good = code == 5 and not left and seconds <= 15
    return {"ended_seconds": seconds, "exit_code": code, "ranks_left": len(left), "good": good}


def main() -> None:
    import ray

    good = True
    for name, test in (("serve and drain", serve_and_drain), ("kill a rank", kill_a_rank)):
        result = {"ray": ray.__version__, **test()}
        keep("serve_ray", name, result)
        print("ok " if result["good"] else "BAD", name, result, flush=True)
        good &= result["good"]
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
