"""A served model under load: lost requests, cost of the metrics, latency of the probes, growth of memory.

    python benchmarks/serve_load.py TEST [TEST ...] [--minutes M] [--pairs N] [--requests N] [--concurrency N]

The real vLLM on the bundled model; ``fake`` has the tests' fake behind the same supervisor. Results are kept in
``benchmarks/results/serve_load.json``. Exit code 1 when a gate is missed. Tests and gates:

``fake``  10,000 requests, 500 at once: every one a complete 200, or an explicit 429 or 503, and the server's own count
          of tokens is the clients'.
``real``  2,000 requests, 32 at once: the same.
``overhead``
          Output tokens per second with the plugin's metrics over those without, two servers taking turns, the idle
          one stopped: at least 0.99 (median over pairs). Beside it the processor time of the server's processes per
          token, which other programs on the machine disturb less.
``wait``  The same for the engine's processes sleeping while they wait for each other (``VQP_ENGINE_WAIT``) against
          vLLM's own spinning: one request at a time, and 16, at least 0.95.
``record``
          Processor time of the plugin's metrics per engine step, fed with vLLM's own statistics objects, over the
          time of a step in ``overhead``: at most 0.01.
``probes``
          ``/readyz`` and ``/metrics`` of the admin app while the server loads, is busy and is dead, and vLLM's
          ``/metrics`` while busy: p99 at most 100 ms, every exposition parses, what is unknown is absent.
``soak``  Light load for ``--minutes``: after a warm-up of a fifth, the last third's memory that only the processes hold
          (anonymous, shared and swapped pages) and their whole resident memory are within 1% of the first third's,
          the descriptors are within 1. A machine that reclaims pages of files meanwhile fails this without a leak.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families
from serve_harness import BUNDLED, Server, complete, keep, percentile, read, session


async def _ask(url: str, requests: int, concurrency: int, tokens: int) -> tuple[Counter[str], list[float], float]:
    """Send ``requests`` at a constant concurrency, every second one streamed; outcomes, latencies, seconds."""
    outcomes: Counter[str] = Counter()
    latencies: list[float] = []
    numbers = iter(range(requests))
    async with session(concurrency) as client:

        async def worker() -> None:
            for number in numbers:
                answer = await complete(client, url, tokens, stream=bool(number % 2), prompt=f"import os, n{number}")
                latencies.append(answer.seconds)
                refused = answer.status in (429, 503)
                outcomes["complete" if answer.complete else f"refused {answer.status}" if refused else
                         f"lost {answer.status}"] += 1  # fmt: skip

        begin = time.monotonic()
        await asyncio.gather(*(worker() for _ in range(concurrency)))
        return outcomes, latencies, time.monotonic() - begin


def sample(url: str, name: str) -> float:
    """The sum of a counter over its samples."""
    text = httpx.get(f"{url}/metrics", timeout=60).text
    families = text_string_to_metric_families(text)
    return sum(one.value for family in families for one in family.samples if one.name == name)


def volume(options: argparse.Namespace, *, fake: bool) -> dict[str, Any]:
    """Many requests."""
    requests = options.requests or (10_000 if fake else 2_000)
    concurrency, tokens = options.concurrency or (500 if fake else 32), 16
    with Server(fake=fake) as server:
        server.wait("ready")
        before = sample(server.url, "vllm:generation_tokens_total")
        outcomes, latencies, seconds = asyncio.run(_ask(server.url, requests, concurrency, tokens))
        counted = sample(server.url, "vllm:generation_tokens_total") - before
        code = server.stop()
    lost = sum(count for outcome, count in outcomes.items() if outcome.startswith("lost"))
    good = not lost and sum(outcomes.values()) == requests and counted == outcomes["complete"] * tokens and code == 0
    return {"requests": requests, "concurrency": concurrency, "tokens_each": tokens, "outcomes": dict(outcomes),
            "server_counted_tokens": counted, "seconds": seconds, "requests_per_second": requests / seconds,
            "latency_p50": percentile(latencies, 0.5), "latency_p99": percentile(latencies, 0.99), "exit_code": code,
            "good": good}  # fmt: skip


CONCURRENCY = 16


def _take_turns(on: Server, off: Server, pairs: int, concurrency: int = CONCURRENCY) -> dict[str, Any]:
    """Requests to two servers in turn: ratios of ``on`` over ``off`` in tokens per second.

    The idle one is suspended.
    """
    tokens, requests = 64, 2 * concurrency
    on.wait("ready")
    off.wait("ready")
    trees = {server.port: server.tree() for server in (on, off)}

    def rate(server: Server) -> tuple[float, float]:
        """Tokens per second of the clock, and per second of processor time."""
        for process in trees[server.port]:
            process.resume()
        before = _processor_seconds(trees[server.port])
        outcomes, _, seconds = asyncio.run(_ask(server.url, requests, concurrency, tokens))
        worked = _processor_seconds(trees[server.port]) - before
        for process in trees[server.port]:
            process.suspend()
        assert outcomes["complete"] == requests, (outcomes, "on" if server is on else "off")
        return requests * tokens / seconds, requests * tokens / worked

    found = []
    try:
        for server in (on, off, on, off):
            rate(server)
        for number in range(pairs):
            # The first one alternates, so that a drift of the machine favours neither.
            order = (on, off) if number % 2 else (off, on)
            rates = {server.port: rate(server) for server in order}
            found.append((rates[on.port], rates[off.port]))
            print(f"    tokens/s and per processor second: on {found[-1][0]}, off {found[-1][1]}", flush=True)
    finally:
        # A suspended guard cannot end what its launcher leaves behind.
        for process in (*trees[on.port], *trees[off.port]):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
    figures: dict[str, Any] = {"pairs": found}
    for index, clock in enumerate(("wall", "processor")):
        ratios = [one[index] / other[index] for one, other in found]
        figures[clock] = {
            "tokens_per_second_on": statistics.median(one[index] for one, _ in found),
            "tokens_per_second_off": statistics.median(other[index] for _, other in found),
            "ratio_median": statistics.median(ratios), "ratio_mean": statistics.fmean(ratios),
            "ratio_stderr": statistics.stdev(ratios) / len(ratios) ** 0.5,
        }  # fmt: skip
    return figures


def overhead(options: argparse.Namespace) -> dict[str, Any]:
    """Throughput with the plugin's metrics against without them."""
    with (
        Server("--deep-check", "0", "--price", "1", "--slo-ttft", "30") as on,
        Server("--deep-check", "0", environment={"VLLM_PLUGINS": "vqp"}) as off,
    ):
        figures = _take_turns(on, off, options.pairs)
        assert "vqp_" in httpx.get(f"{on.url}/metrics").text
        assert "vqp_" not in httpx.get(f"{off.url}/metrics").text
        codes = [on.stop(), off.stop()]
    return {**figures, "exit_codes": codes, "good": figures["wall"]["ratio_median"] >= 0.99}


def wait(options: argparse.Namespace) -> dict[str, Any]:
    """Throughput with the engine's processes asleep while they wait for each other, against vLLM's own spinning."""
    found: dict[str, Any] = {}
    for concurrency in (1, CONCURRENCY):
        with (
            Server("--deep-check", "0") as sleeping,
            Server("--deep-check", "0", environment={"VQP_ENGINE_WAIT": "spin"}) as spinning,
        ):
            found[f"concurrency {concurrency}"] = _take_turns(sleeping, spinning, options.pairs, concurrency)
            assert [sleeping.stop(), spinning.stop()] == [0, 0]
    return {**found, "good": all(one["wall"]["ratio_median"] >= 0.95 for one in found.values())}


STEPS = 20_000


def record(options: argparse.Namespace) -> dict[str, Any]:
    """The cost of the metrics per engine step, in a process of its own."""
    from vllm.v1.metrics.stats import IterationStats, SchedulerStats

    from vllm_quant_serve.metrics.stat_logger import VqpStatLogger
    from vllm_quant_serve.supervise.run_directory import VARIABLE, RunDirectory

    with tempfile.TemporaryDirectory() as folder:
        plan = {"weight_bytes_per_rank": 14_000_000, "kv_bytes_per_token": 4096,
                "kv_tokens": {"low": 16384, "value": 16384, "high": 16384}}  # fmt: skip
        # All launch metadata there can be: the most expensive case.
        metadata = {"plan": plan, "peaks": {"bandwidth": 1e12, "flops": 1e15}, "price": 1.0,
                    "slo": {"ttft": 1.0, "tpot": 0.1}}  # fmt: skip
        RunDirectory(Path(folder)).write_metadata(metadata)
        os.environ[VARIABLE] = folder
        logger = VqpStatLogger(SimpleNamespace(
            model_config=SimpleNamespace(model=str(BUNDLED), revision=None, quantization=None, served_model_name="m",
                                         max_model_len=512),
            parallel_config=SimpleNamespace(tensor_parallel_size=1, pipeline_parallel_size=1, data_parallel_size=1),
            cache_config=SimpleNamespace(kv_cache_size_tokens=16384, num_gpu_blocks=1024, block_size=16),
            quant_config=None,
        ), [0])  # fmt: skip
        logger.log_engine_initialized()
        assert logger.account is not None
        scheduler, iteration = SchedulerStats(num_running_reqs=16, kv_cache_usage=0.5), IterationStats()
        iteration.num_generation_tokens = 16
        begin = time.thread_time()
        for _ in range(STEPS):
            # In service the rates are published twice per second; here with every step.
            logger._published = 0.0
            logger.record(scheduler, iteration, engine_idx=0)
        each = (time.thread_time() - begin) / STEPS
    # The step of the comparison: all requests that run get a token.
    step = CONCURRENCY / read("serve_load")["overhead"]["wall"]["tokens_per_second_on"]
    return {"seconds_per_step": each, "step_seconds": step, "share": each / step, "good": each / step <= 0.01}


def _processor_seconds(processes: Iterable[psutil.Process]) -> float:
    return sum(sum(one.cpu_times()[:2]) for one in processes)


# On a CPU, peaks and energy are unknown, and weight bytes are not reported.
UNKNOWN_ON_CPU = ("vqp_energy_joules_total", "vqp_joules_per_token", "vqp_model_bandwidth_utilization_ratio",
                  "vqp_model_flops_utilization_ratio", "vqp_peak_flops_per_second")  # fmt: skip


class Prober:
    """Polls some addresses, on a thread of its own.

    Between two rounds it sleeps and records how late it woke: the time for which any process on this machine waits
    for a core. No answer can be quicker than that.
    """

    def __init__(self, urls: Iterable[str], pause: float = 0.02) -> None:
        self.seconds: dict[str, list[float]] = {url: [] for url in urls}
        self.late: list[float] = []
        self.failures: list[str] = []
        self.texts: dict[str, str] = {}
        self._stop, self._pause = threading.Event(), pause
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with httpx.Client(timeout=30) as client:
            while True:
                begin = time.monotonic()
                if self._stop.wait(self._pause):
                    return
                self.late.append(time.monotonic() - begin - self._pause)
                for url, seconds in self.seconds.items():
                    begin = time.monotonic()
                    try:
                        answer = client.get(url)
                    except httpx.HTTPError as error:
                        self.failures.append(f"{url}: {error}")
                        continue
                    seconds.append(time.monotonic() - begin)
                    if url.endswith("/metrics"):
                        self.texts[url] = answer.text
                    elif answer.status_code not in (200, 503):
                        self.failures.append(f"{url}: {answer.status_code}")

    def stop(self) -> dict[str, Any]:
        """p50, p99 and count for each address; the last expositions are parsed."""
        self._stop.set()
        self._thread.join()
        late = {"times": len(self.late), "p99_late_ms": 1e3 * percentile(self.late, 0.99),
                "worst_late_ms": 1e3 * max(self.late)}  # fmt: skip
        found: dict[str, Any] = {"failures": self.failures, "a plain sleep": late}
        for url, seconds in self.seconds.items():
            found[url.split("/", 3)[3] + (" of vLLM" if url in self.seconds and self._of_vllm(url) else "")] = {
                "asked": len(seconds), "p50_ms": 1e3 * percentile(seconds, 0.5),
                "p99_ms": 1e3 * percentile(seconds, 0.99), "worst_ms": 1e3 * max(seconds),
            }  # fmt: skip
        return found

    def _of_vllm(self, url: str) -> bool:
        return "vllm:" in self.texts.get(url, "")

    def names(self) -> set[str]:
        """Sample names of the last expositions."""
        families = (text_string_to_metric_families(text) for text in self.texts.values())
        return {one.name for several in families for family in several for one in family.samples}


def _run_clients(url: str) -> None:
    asyncio.run(_ask(url, 240, 8, 64))


def probes(options: argparse.Namespace) -> dict[str, Any]:
    """Latency of probes and scrapes."""
    phases: dict[str, Any] = {}
    false_zeros: list[str] = []
    with Server("--restart", "1") as server:
        server.wait("started")
        own = [f"{server.admin}/readyz", f"{server.admin}/metrics"]
        loading = Prober(own)
        time.sleep(5)
        false_zeros += [name for name in ("vqp_start_seconds",) if name in loading.names()]
        server.wait("ready")
        phases["loading"] = loading.stop()

        # The clients run in a process of their own, so that they do not slow the prober.
        clients = multiprocessing.get_context("spawn").Process(target=_run_clients, args=(server.url,))
        clients.start()
        time.sleep(2)
        busy = Prober([*own, f"{server.url}/metrics"])
        clients.join()
        phases["busy"] = busy.stop()
        false_zeros += [name for name in UNKNOWN_ON_CPU if name in busy.names()]

        dead = Prober(own)
        server.part("VLLM::EngineCore").kill()
        server.wait("restart")
        server.wait("ready")
        phases["dead"] = dead.stop()
        code = server.stop()
    worst = max(one["p99_ms"] for phase in phases.values() for one in phase.values() if "p99_ms" in one)
    failures = [failure for phase in phases.values() for failure in phase["failures"]]
    good = worst <= 100 and not failures and not false_zeros and code == 0
    return {**phases, "worst_p99_ms": worst, "false_zeros": false_zeros, "exit_code": code, "good": good}


def soak(options: argparse.Namespace) -> dict[str, Any]:
    """Light load for a long time."""
    samples: list[tuple[float, int, int, int]] = []
    outcomes: Counter[str] = Counter()
    with Server() as server:
        server.wait("ready")
        processes, begin = server.tree(), time.monotonic()
        length = options.minutes * 60
        while (now := time.monotonic() - begin) < length:
            outcomes += asyncio.run(_ask(server.url, 4, 2, 32))[0]
            httpx.get(f"{server.url}/metrics", timeout=60)
            httpx.get(f"{server.admin}/status", timeout=60)
            samples.append((now, *_sizes(processes)))
            time.sleep(options.pause)
        code = server.stop()
    kept = [one for one in samples if one[0] > length / 5]
    third = len(kept) // 3
    early, late = (
        [statistics.fmean(column) for column in zip(*part, strict=True)] for part in (kept[:third], kept[-third:])
    )
    held, resident = (late[index] / early[index] - 1 for index in (1, 2))
    lost = sum(count for outcome, count in outcomes.items() if outcome != "complete")
    good = abs(held) <= 0.01 and abs(resident) <= 0.01 and abs(late[3] - early[3]) <= 1 and not lost and code == 0
    return {"minutes": options.minutes, "requests": sum(outcomes.values()), "outcomes": dict(outcomes),
            "held_bytes_first_third": early[1], "held_bytes_last_third": late[1], "held_growth": held,
            "resident_bytes_first_third": early[2], "resident_bytes_last_third": late[2], "resident_growth": resident,
            "descriptors_first_third": early[3], "descriptors_last_third": late[3], "exit_code": code,
            "good": good}  # fmt: skip


_HELD = ("RssAnon", "RssShmem", "VmSwap")


def _sizes(processes: list[psutil.Process]) -> tuple[int, int, int]:
    """Bytes that only the processes hold, all resident bytes, and open descriptors."""
    held = resident = descriptors = 0
    for one in processes:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{one.pid}/status").read_text().splitlines())
        held += sum(int(status[name].split()[0]) * 1024 for name in _HELD)
        resident += int(status["VmRSS"].split()[0]) * 1024
        descriptors += one.num_fds()
    return held, resident, descriptors


TESTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "fake": lambda options: volume(options, fake=True),
    "real": lambda options: volume(options, fake=False),
    "overhead": overhead,
    "wait": wait,
    "record": record,
    "probes": probes,
    "soak": soak,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", nargs="+", choices=list(TESTS), metavar="TEST", help=", ".join(TESTS))
    parser.add_argument("--minutes", type=float, default=30.0, help="of the soak")
    parser.add_argument("--pause", type=float, default=2.0, help="seconds between the soak's bursts")
    parser.add_argument("--pairs", type=int, default=20, help="of the comparison with and without metrics")
    parser.add_argument("--requests", type=int, help="instead of 10,000 and 2,000")
    parser.add_argument("--concurrency", type=int, help="instead of 500 and 32")
    options = parser.parse_args()
    good = True
    for name in options.tests:
        result = TESTS[name](options)
        keep("serve_load", name, result)
        good &= result["good"]
        print(
            f"{'ok ' if result['good'] else 'BAD'} {name}", *(f"\n    {k}: {v}" for k, v in result.items()), flush=True
        )
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
