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
        assert "something is wrong" in running.error()["hint"]
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
