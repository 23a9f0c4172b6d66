"""The life of a server under the supervisor, seen from outside, with a fake in vLLM's place."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest

from tests.support.supervised import Supervised, can_bind, free_port, wait_gone


@pytest.fixture
def ready() -> Iterator[Supervised]:
    with Supervised() as running:
        running.wait_event("ready")
        yield running


class Stream(threading.Thread):
    """A client that reads a streamed completion to its end."""

    def __init__(self, url: str, tokens: int, pause: float) -> None:
        super().__init__(daemon=True)
        self.url, self.body = url, {"stream": True, "max_tokens": tokens, "pause": pause}
        self.lines: list[str] = []
        self.error: Exception | None = None
        self.begun = threading.Event()

    def run(self) -> None:
        try:
            with httpx.stream("POST", f"{self.url}/v1/completions", json=self.body, timeout=30) as answer:
                self.begun.set()
                self.lines += [line for line in answer.iter_lines() if line]
        except httpx.HTTPError as err:
            self.error = err
        self.begun.set()

    @property
    def complete(self) -> bool:
        whole = len(self.lines) == self.body["max_tokens"] + 1 and self.lines[-1] == "data: [DONE]"
        return self.error is None and whole


def test_ready_means_that_it_answers(ready: Supervised) -> None:
    assert httpx.get(f"{ready.url}/v1/models").json()["data"][0]["id"] == "fake/model"
    assert ready.events[-1]["url"] == ready.url


def test_sigterm_stops_cleanly_and_leaves_nothing(ready: Supervised) -> None:
    processes = ready.descendants()
    assert len(processes) >= 3, "server, its engine, the guard"
    ready.send(signal.SIGTERM)
    assert ready.wait_exit() == 0
    assert wait_gone(processes) == []
    assert can_bind(ready.port)
    assert ready.run_dirs() == []


def test_drain_finishes_streams_and_refuses_new_requests(ready: Supervised) -> None:
    httpx.get(f"{ready.url}/health?hang")
    streams = [Stream(ready.url, tokens=30, pause=0.01) for _ in range(32)]
    for stream in streams:
        stream.start()
    for stream in streams:
        assert stream.begun.wait(20)
    ready.send(signal.SIGTERM)
    assert ready.wait_event("draining")["in_flight"] == 32
    refused = httpx.post(f"{ready.url}/v1/completions", json={"max_tokens": 1})
    assert refused.status_code == 503
    assert refused.json()["error"]["type"] == "server_draining"
    assert httpx.get(f"{ready.url}/health?resume").status_code == 200
    assert ready.wait_exit() == 0
    for stream in streams:
        stream.join(10)
    assert [stream.complete for stream in streams] == [True] * 32


def test_requests_longer_than_the_drain_are_cut_and_told_by_the_exit_code() -> None:
    with Supervised(options={"drain_timeout": 0.5, "stop_timeout": 1.0}) as running:
        running.wait_event("ready")
        stream = Stream(running.url, tokens=1000, pause=0.05)
        stream.start()
        assert stream.begun.wait(20)
        running.send(signal.SIGTERM)
        assert running.wait_exit() == 128 + signal.SIGTERM
        assert running.events[-1]["cut"] == 1


def test_a_second_signal_forces(ready: Supervised) -> None:
    processes = ready.descendants()
    stream = Stream(ready.url, tokens=1000, pause=0.05)
    stream.start()
    assert stream.begun.wait(20)
    ready.send(signal.SIGTERM)
    ready.wait_event("draining")
    ready.send(signal.SIGINT)
    assert ready.wait_exit(20) == 128 + signal.SIGINT
    assert wait_gone(processes) == []


def test_sigint_drains_as_well(ready: Supervised) -> None:
    ready.send(signal.SIGINT)
    assert ready.wait_exit() == 0


def test_a_server_that_ignores_sigterm_is_killed() -> None:
    with Supervised("--fake-ignore-term", options={"stop_timeout": 0.5}) as running:
        running.wait_event("ready")
        processes = running.descendants()
        running.send(signal.SIGTERM)
        assert running.wait_exit() == 0
        assert wait_gone(processes) == []


def test_a_signal_while_starting_stops_and_names_the_signal() -> None:
    with Supervised("--fake-load", "60") as running:
        running.wait_event("started")
        processes = running.descendants()
        running.send(signal.SIGTERM)
        assert running.wait_exit(30) == 128 + signal.SIGTERM
        assert wait_gone(processes) == []


def test_killing_the_supervisor_leaves_no_orphan(ready: Supervised) -> None:
    processes = ready.descendants()
    ready.send(signal.SIGKILL)
    ready.process.wait()
    assert wait_gone(processes, timeout=10) == []
    assert can_bind(ready.port)
    assert ready.run_dirs() == []


def test_killing_supervisor_and_guard_still_ends_the_server(ready: Supervised) -> None:
    server = psutil.Process(ready.server_pid())
    guards = [p for p in ready.descendants() if any("guard.py" in word for word in p.cmdline())]
    assert len(guards) == 1
    guards[0].kill()
    ready.send(signal.SIGKILL)
    ready.process.wait()
    assert wait_gone([server], timeout=10) == []
    for line in ready.logged().splitlines():
        if line.startswith("fake engine "):
            os.kill(int(line.split()[-1]), signal.SIGKILL)


def test_a_dead_server_is_engine_died(ready: Supervised) -> None:
    processes = ready.descendants()
    os.kill(ready.server_pid(), signal.SIGKILL)
    assert ready.wait_exit(20) == 5
    assert "SIGKILL" in ready.error()["message"]
    assert wait_gone(processes) == []
    assert can_bind(ready.port)


def test_an_early_end_is_a_startup_failure_with_the_servers_last_words() -> None:
    with Supervised("--fake-fail", "RuntimeError: something is wrong") as running:
        processes = running.descendants()
        assert running.wait_exit() == 4
        assert "something is wrong" in running.error()["message"]
        assert wait_gone(processes) == []


def test_a_server_that_never_gets_ready_is_given_up() -> None:
    with Supervised("--fake-load", "60", options={"startup_timeout": 1.0}) as running:
        assert running.wait_exit(30) == 4
        assert "1 s" in running.error()["message"]


def test_port_in_use_is_found_before_anything_starts() -> None:
    port = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with Supervised(port=port) as running:
            assert running.wait_exit() == 4
            assert str(port) in running.error()["message"]
            assert "--port" in running.error()["hint"]
            assert "started" not in running.names()


def test_the_servers_log_goes_to_stderr_only(ready: Supervised) -> None:
    assert "fake engine" in ready.logged()
    assert all("fake engine" not in json.dumps(event) for event in ready.events)


def test_an_unhealthy_server_is_reported_at_once(ready: Supervised) -> None:
    begin = time.monotonic()
    httpx.get(f"{ready.url}/health?unhealthy")
    ready.wait_event("unhealthy", timeout=10)
    assert time.monotonic() - begin < 5


PLAN = {"max_model_len": 4096, "max_num_seqs": 64, "kv_bytes_per_token": 4096, "gpu_memory_utilization": 0.92}


def test_memory_failures_are_retried_with_less_of_what_the_planner_chose() -> None:
    fields = {"plan": PLAN, "planned": ["--kv-cache-memory-bytes", str(100 << 20), "--max-num-seqs", "64"]}
    with Supervised("--fake-memory", str(60 << 20), options=fields) as running:
        ready = running.wait_event("ready")
        assert ready["url"] == running.url
        retries = [event for event in running.events if event["event"] == "retry"]
        assert len(retries) == 2, "the third attempt fits"
        sizes = [int(event["change"].split("-> ")[1]) for event in retries]
        assert (100 << 20) > sizes[0] > sizes[1]
        assert {event["cause"] for event in retries} == {"host-memory"}
        running.send(signal.SIGTERM)
        assert running.wait_exit() == 0


def test_a_memory_failure_of_the_users_own_choice_is_not_retried() -> None:
    words = ["--fake-memory", "1", "--kv-cache-memory-bytes", "4096", "--max-num-seqs", "4", "--max-model-len", "512"]
    with Supervised(*words, options={"plan": PLAN}) as running:
        assert running.wait_exit() == 4
        assert running.names().count("started") == 1
        assert running.names().count("retry") == 0


def test_retries_end_after_three_attempts() -> None:
    fields = {"plan": PLAN, "planned": ["--kv-cache-memory-bytes", str(100 << 20)]}
    with Supervised("--fake-memory", "1", options=fields) as running:
        assert running.wait_exit() == 4
        assert running.names().count("started") == 3
        assert "after 3 attempts" in running.error()["message"]


@pytest.mark.parametrize(
    ("line", "code", "hint"),
    [
        (
            "ValueError: Total number of attention heads (52) must be divisible by tensor parallel size (3).",
            4,
            "tensor",
        ),
        ("OSError: [Errno 98] Address already in use", 4, "--port"),
        ("error: unrecognized arguments: --no-such-flag", 2, "--help"),
    ],
)
def test_other_failures_are_told_and_not_retried(line: str, code: int, hint: str) -> None:
    with Supervised("--fake-fail", line, options={"plan": PLAN}) as running:
        assert running.wait_exit() == code
        assert hint in running.error()["hint"]
        assert running.names().count("started") == 1


def test_a_dead_server_is_restarted_as_often_as_allowed() -> None:
    with Supervised(options={"restarts": 1, "backoff": 0.1}) as running:
        running.wait_event("ready")
        first = running.descendants()
        os.kill(running.server_pid(), signal.SIGKILL)
        running.wait_event("restart", timeout=20)
        running.wait_event("ready", timeout=30)
        assert httpx.get(f"{running.url}/health").status_code == 200
        assert wait_gone([p for p in first if "guard.py" not in " ".join(cmdline_of(p))]) == []
        os.kill(running.server_pid(), signal.SIGKILL)
        assert running.wait_exit(30) == 5
        assert can_bind(running.port)


def cmdline_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_signal_while_backing_off_ends_it() -> None:
    with Supervised(options={"restarts": 3, "backoff": 30.0}) as running:
        running.wait_event("ready")
        os.kill(running.server_pid(), signal.SIGKILL)
        running.wait_event("restart", timeout=20)
        running.send(signal.SIGTERM)
        assert running.wait_exit(20) == 128 + signal.SIGTERM


def test_an_engine_that_makes_no_step_while_requests_wait_is_hung() -> None:
    with Supervised(options={"hang_timeout": 1.0}) as running:
        running.wait_event("ready")
        httpx.get(f"{running.url}/health?hang")
        stream = Stream(running.url, tokens=5, pause=0.0)
        stream.start()
        assert stream.begun.wait(20)
        assert running.wait_event("hung", timeout=20)["seconds"] >= 1.0
        assert running.wait_exit(20) == 5


def test_a_slow_engine_that_makes_steps_is_not_hung() -> None:
    with Supervised(options={"hang_timeout": 1.0}) as running:
        running.wait_event("ready")
        stream = Stream(running.url, tokens=10, pause=0.4)
        stream.start()
        stream.join(30)
        assert stream.complete
        running.send(signal.SIGTERM)
        assert running.wait_exit() == 0


def test_an_idle_engine_that_hangs_is_found_by_the_deep_check() -> None:
    with Supervised(options={"hang_timeout": 1.0, "deep_check": 0.5}) as running:
        running.wait_event("ready")
        httpx.get(f"{running.url}/health?hang")
        running.wait_event("hung", timeout=20)
        assert running.wait_exit(20) == 5


def test_a_server_whose_engine_is_dead_is_not_waited_for(ready: Supervised) -> None:
    begin = time.monotonic()
    httpx.get(f"{ready.url}/health?unhealthy")
    assert ready.wait_exit(30) == 5
    assert time.monotonic() - begin < 15
    assert "unhealthy" in ready.error()["message"]
