"""A part of a running server is killed, stopped or terminated; and a server does not start.

    python benchmarks/serve_faults.py TEST [TEST ...] [--times N]

The real vLLM on the bundled model, or the tests' fake behind the same supervisor (named below). Results are
kept in ``benchmarks/results/serve_faults.json``; each run of a drain is added to those before. Exit code 1 when a
gate is missed. Tests and gates:

``kill-engine`` ``kill-worker`` ``kill-api`` ``kill-supervisor``
    SIGKILL under load. Unready within 5 s, ended within 10 s more with the documented code, nothing left, port free.
``restart``
    SIGKILL of the engine under ``--restart 1``: unready within 5 s, ready again within 10 s more than its first load.
``stop-engine``
    SIGSTOP of the engine with queued work: detected within 30 s.
``drain`` ``drain-fake``
    SIGTERM with 32 live streams: every stream complete, new requests refused, exit code 0, nothing left.
``drain-sent``
    SIGTERM as soon as 200 requests have been sent, of which the server has seen a part: every stream complete,
    new requests refused, exit code 0, and the launcher's count of answers is the clients'.
``two-launchers``
    A second launcher for the port of a first one with the real engine: when it has planned, starts
    vLLM and loads, when it is ready, and (``--offset``) any number of seconds later; with and without an API key. The
    second ends with exit code 4 before it starts anything, in one line that names the first's process and model; the
    first becomes ready, answers, and stops with exit code 0.
``startup``
    Failures of every class, with the messages of the installed vLLM, from the fake: at most three attempts, each
    strictly smaller, the user's flags untouched, exit code 4 (2 for flags and configurations that vLLM refuses).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import psutil
from serve_harness import BUNDLED, FAKE, ROOT, Answer, Server, complete, free_port, keep, left_after, session

HANG_TIMEOUT = 15
STREAMS = 32
CODES = {"kill-engine": 5, "kill-worker": 5, "kill-api": 5, "kill-supervisor": -signal.SIGKILL, "stop-engine": 5}
PARTS = {"kill-engine": "VLLM::EngineCore", "kill-worker": "VLLM::Worker", "kill-api": "vllm_quant_serve.server"}


class Load:
    """Four clients that send requests all the time."""

    def __init__(self, server: Server) -> None:
        self.url, self.stop = server.url, threading.Event()
        for _ in range(4):
            threading.Thread(target=self._ask, daemon=True).start()

    def _ask(self) -> None:
        body = {"model": "m", "prompt": "import os", "max_tokens": 400, "ignore_eos": True}
        while not self.stop.is_set():
            try:
                httpx.post(f"{self.url}/v1/completions", json=body, timeout=300)
            except httpx.HTTPError:
                time.sleep(0.2)


def shared_memory(processes: Iterable[psutil.Process]) -> set[Path]:
    """Files of /dev/shm that the processes have mapped: an engine's rings must not outlive it."""
    found = set()
    for process in processes:
        found |= {Path(one.path) for one in process.memory_maps() if one.path.startswith("/dev/shm/")}
    return {path for path in found if path.exists()}


def until_unready(admin: str, begin: float, limit: float) -> float | None:
    """Seconds after ``begin`` at which /readyz no longer answers 200, or is gone."""
    while time.monotonic() - begin < limit:
        try:
            if httpx.get(f"{admin}/readyz", timeout=2).status_code != 200:
                return time.monotonic() - begin
        except httpx.HTTPError:
            return time.monotonic() - begin
        time.sleep(0.05)
    return None


def fault(name: str) -> dict[str, Any]:
    """Kill or stop a part of a busy server without a restart left."""
    with Server("--hang-timeout", str(HANG_TIMEOUT)) as server:
        server.wait("ready")
        processes, load = server.tree(), Load(server)
        time.sleep(2.0)
        mapped = shared_memory(processes)
        begin = time.monotonic()
        if name == "stop-engine":
            server.part(PARTS["kill-engine"]).suspend()
        elif name == "kill-supervisor":
            server.process.kill()
        else:
            server.part(PARTS[name]).kill()
        limit = 30.0 if name == "stop-engine" else 5.0
        unready = until_unready(server.admin, begin, limit + 60)
        code = server.process.wait(120)
        load.stop.set()
        left = left_after(processes)
        ended, free = time.monotonic() - begin, server.port_free()
    shm = sum(path.exists() for path in mapped)
    for process in left:
        process.kill()
    good = unready is not None and unready <= limit and ended <= limit + 10 and not left and free and not shm
    return {"unready_seconds": unready, "ended_seconds": ended, "exit_code": code, "left": len(left), "port_free": free,
            "shared_memory": len(mapped), "shared_memory_left": shm, "good": good and code == CODES[name]}  # fmt: skip


def restart(_: str) -> dict[str, Any]:
    """Kill the engine of a server with a restart left."""
    with Server("--restart", "1") as server:
        loaded = server.wait("ready")["load_seconds"]
        old, load = server.tree()[1:], Load(server)
        time.sleep(2.0)
        begin = time.monotonic()
        server.part(PARTS["kill-engine"]).kill()
        unready = until_unready(server.admin, begin, 65)
        again = server.wait("ready")["load_seconds"]
        ready = time.monotonic() - begin
        left = [p for p in left_after(old, 1.0) if "guard.py" not in " ".join(p.cmdline())]
        load.stop.set()
        answered = httpx.get(f"{server.url}/v1/models", timeout=30).status_code
        code = server.stop()
    good = unready is not None and unready <= 5 and ready - again <= 10 and not left and answered == 200 and code == 0
    return {"unready_seconds": unready, "ready_again_seconds": ready, "first_load_seconds": loaded,
            "second_load_seconds": again, "left": len(left), "exit_code": code, "good": good}  # fmt: skip


async def _sent(server: Server, tokens: int, count: int) -> tuple[list[Answer], int]:
    """Terminate the server when ``count`` requests have been sent; their answers and how many had begun."""
    sent = asyncio.Semaphore(0)

    async def on_sent(*_: Any) -> None:
        sent.release()

    trace = aiohttp.TraceConfig()
    trace.on_request_chunk_sent.append(on_sent)
    async with session(count, trace) as client:
        begun = [asyncio.Event() for _ in range(count)]
        tasks = [asyncio.create_task(complete(client, server.url, tokens, event)) for event in begun]
        for _ in range(count):
            await sent.acquire()
        seen = sum(event.is_set() for event in begun)
        server.process.send_signal(signal.SIGTERM)
        return await asyncio.gather(*tasks), seen


def drain_sent(_: str) -> dict[str, Any]:
    """SIGTERM while most requests wait to be accepted."""
    count = 200
    with Server("--drain-timeout", "110") as server:
        server.wait("ready")
        processes = server.tree()
        answers, seen = asyncio.run(_sent(server, 100, count))
        code = server.process.wait(200)
        stopped = next(event for event in server.rest() if event.get("event") == "stopped")
        left = left_after(processes)
    whole = sum(answer.complete for answer in answers)
    counted = {name: stopped[name] for name in ("answered", "cut", "refused")}
    good = whole == count and counted == {"answered": count, "cut": 0, "refused": 0} and code == 0 and not left
    return {"streams": count, "begun_at_signal": seen, "complete": whole, **counted, "exit_code": code,
            "left": len(left), "good": good}  # fmt: skip


async def _streams(server: Server, tokens: int, **extra: Any) -> tuple[list[Answer], int]:
    """Open the streams, terminate the server once all have begun, send one more request; the answers and its status."""
    async with session(STREAMS) as client:
        begun = [asyncio.Event() for _ in range(STREAMS)]
        tasks = [asyncio.create_task(complete(client, server.url, tokens, event, **extra)) for event in begun]
        await asyncio.gather(*(event.wait() for event in begun))
        alive = sum(not task.done() for task in tasks)
        server.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(server.wait, "draining", 60)
        refused = await complete(client, server.url, 1)
        answers = await asyncio.gather(*tasks)
    return [*answers, Answer(alive, True, 0.0)], refused.status


def drain(name: str) -> dict[str, Any]:
    """SIGTERM with live streams."""
    fake = name == "drain-fake"
    with Server(fake=fake) as server:
        server.wait("ready")
        processes = server.tree()
        tokens, extra = (30, {"pause": 0.02}) if fake else (200, {})
        begin = time.monotonic()
        answers, refused = asyncio.run(_streams(server, tokens, **extra))
        alive = answers.pop().status
        code = server.process.wait(120)
        seconds, left, free = time.monotonic() - begin, left_after(processes), server.port_free()
    whole = sum(answer.complete for answer in answers)
    good = whole == STREAMS and alive == STREAMS and refused == 503 and code == 0 and not left and free
    return {"streams": STREAMS, "alive_at_signal": alive, "complete": whole, "refused_status": refused,
            "exit_code": code, "left": len(left), "port_free": free, "seconds": seconds, "good": good}  # fmt: skip


PLAN = {"max_model_len": 4096, "max_num_seqs": 64, "kv_bytes_per_token": 4096, "gpu_memory_utilization": 0.92}
USER = ["--block-size", "32"]


def startup(_: str) -> dict[str, Any]:
    """Every message of the tests' list, printed by the fake before it exits."""
    sys.path.insert(0, str(ROOT))
    from tests.serve.supervise.test_failures import ELSEWHERE, FROM_VLLM

    messages = [(text, cause) for _, _, text, cause in FROM_VLLM] + list(ELSEWHERE)
    rows = [_one_failure(text, cause.value, cause.is_memory) for text, cause in messages]
    return {"messages": rows, "classes": len({row["cause"] for row in rows}), "good": all(row["good"] for row in rows)}


def _one_failure(text: str, cause: str, memory: bool) -> dict[str, Any]:
    planned = ["--kv-cache-memory-bytes", str(512 << 20), "--max-num-seqs", "64"]
    with tempfile.TemporaryDirectory() as folder:
        seen = Path(folder, "argv")
        fields = json.dumps({"plan": PLAN, "planned": planned})
        command = [sys.executable, str(FAKE), fields, "m", "--fake-fail", text, "--fake-argv", str(seen),
                   "--port", str(free_port()), *USER]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        events = [json.loads(line) for line in done.stdout.splitlines()]
        attempts = sum(event.get("event") == "started" for event in events)
        changes = [event["change"] for event in events if event.get("event") == "retry"]
        argv = json.loads(seen.read_text())
    smaller = all(float(new) < float(old) for _, old, _, new in (change.split(" ") for change in changes))
    untouched = argv[-len(USER) :] == USER and not any(change.startswith(USER[0]) for change in changes)
    code = 2 if cause in ("flags", "config", "quantization") else 4
    good = done.returncode == code and attempts == (3 if memory else 1) and smaller and untouched
    return {"cause": cause, "message": text[:80], "attempts": attempts, "changes": changes,
            "exit_code": done.returncode, "user_flags_untouched": untouched, "good": good}  # fmt: skip


def two_launchers(_: str, offsets: Sequence[float] = ()) -> dict[str, Any]:
    """Launchers that want the port of another one, at every stage of that one's life."""
    results = [_second_launchers(key, offsets) for key in ((), ("--api-key", "secret"))]
    trials = [{"key": bool(index), **one} for index, result in enumerate(results) for one in result["trials"]]
    return {"second_launchers": len(trials), "refused": sum(one["good"] for one in trials),
            "slowest_seconds": max(one["seconds"] for one in trials), "trials": trials,
            "good": all(one["good"] for one in results)}  # fmt: skip


def _second_launchers(key: Sequence[str], offsets: Sequence[float]) -> dict[str, Any]:
    tried: list[dict[str, Any]] = []

    def second(when: str) -> None:
        begin = time.monotonic()
        with Server(*key, port=first.port) as other:
            events = other.rest()
            code = other.process.wait(60)
        message = next((event["error"]["message"] for event in events if "error" in event), "")
        named = f"pid {first.process.pid}" in message and str(BUNDLED) in message
        good = code == 4 and named and not any(event.get("event") == "started" for event in events)
        tried.append({"when": when, "first_for_seconds": round(begin - first.begun, 1),
                      "seconds": round(time.monotonic() - begin, 2), "exit_code": code,
                      "message": message.replace(f"{ROOT}/", ""), "good": good})  # fmt: skip

    with Server(*key) as first:
        # Its lock is taken within its first second or two, the imports.
        first.wait("plan")
        second("planned")
        first.wait("started")
        second("vLLM starts")
        until = time.monotonic() + 10
        while time.monotonic() < until and first.process.poll() is None:
            time.sleep(0.5)
        second("vLLM loads")
        first.wait("ready")
        second("ready")
        for offset in offsets:
            time.sleep(max(0.0, first.begun + offset - time.monotonic()))
            second(f"{offset:g} s")
        headers = {"Authorization": f"Bearer {key[1]}"} if key else {}
        answered = httpx.get(f"{first.url}/v1/models", headers=headers, timeout=30).status_code
        code = first.stop()
    good = all(one["good"] for one in tried) and answered == 200 and code == 0
    return {"trials": tried, "good": good}


TESTS: dict[str, Callable[[str], dict[str, Any]]] = {
    **dict.fromkeys(("kill-engine", "kill-worker", "kill-api", "kill-supervisor", "stop-engine"), fault),
    "restart": restart, "drain": drain, "drain-fake": drain, "drain-sent": drain_sent, "startup": startup,
    "two-launchers": two_launchers,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", nargs="+", choices=list(TESTS), metavar="TEST", help=", ".join(TESTS))
    parser.add_argument("--offset", type=float, nargs="*", default=[90.0], help="for two-launchers, seconds")
    parser.add_argument("--times", type=int, default=1, help="repetitions of each")
    options = parser.parse_args()
    good = True
    for name in options.tests:
        for _ in range(options.times):
            result = two_launchers(name, options.offset) if name == "two-launchers" else TESTS[name](name)
            keep("serve_faults", name, result, append=name.startswith("drain"))
            good &= result["good"]
            shown = {key: value for key, value in result.items() if key not in ("good", "messages", "trials")}
            words = ", ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items())
            print(f"{'ok ' if result['good'] else 'BAD'} {name:16} {words}", flush=True)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
