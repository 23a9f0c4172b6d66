"""What a drain claims: answered, cut and refused requests are counted by how they ended."""

from __future__ import annotations

import os
import signal
import socket
import threading

import httpx
import pytest

from tests.serve.supervise.test_session import Stream
from tests.support.supervised import Supervised

STREAMS = 40


def begin(running: Supervised, count: int, tokens: int, pause: float) -> list[Stream]:
    streams = [Stream(running.url, tokens=tokens, pause=pause) for _ in range(count)]
    for stream in streams:
        stream.start()
    return streams


def test_requests_that_the_server_has_not_seen_yet_are_answered() -> None:
    """They were sent before the signal, and wait in the kernel while the server's event loop is busy."""
    with Supervised() as running:
        running.wait_event("ready")
        blocked = threading.Thread(target=httpx.get, args=(f"{running.url}/health?block=3",), kwargs={"timeout": 30})
        blocked.start()
        # A connection that the server does not take is one that it has not seen.
        while httpx_answers(running):
            pass
        sent = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(STREAMS)]
        body = b'{"stream": true, "max_tokens": 3}'
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(
            body
        )
        for one in sent:
            one.sendall(head + body)
        running.send(signal.SIGTERM)
        answers = [read_all(one) for one in sent]
        assert running.wait_exit() == 0
        blocked.join()
    assert [answer.startswith(b"HTTP/1.1 200") and b"[DONE]" in answer for answer in answers] == [True] * STREAMS
    stopped = running.event("stopped")
    assert (stopped["answered"], stopped["cut"], stopped["refused"]) == (STREAMS, 0, 0)


def httpx_answers(running: Supervised) -> bool:
    try:
        return httpx.get(f"{running.url}/health", timeout=0.2).is_success
    except httpx.TimeoutException:
        return False


def read_all(one: socket.socket) -> bytes:
    one.settimeout(30)
    received = b""
    with one:
        while chunk := one.recv(65536):
            received += chunk
    return received


def test_streams_that_the_server_aborts_are_counted_as_cut() -> None:
    with Supervised() as running:
        running.wait_event("ready")
        good = begin(running, 5, tokens=20, pause=0.05)
        assert all(stream.begun.wait(20) for stream in good)
        running.send(signal.SIGTERM)
        assert running.wait_exit() == 0
        assert running.event("stopped")["answered"] == 5
    with Supervised() as running:
        running.wait_event("ready")
        streams = begin(running, 5, tokens=20, pause=0.05)
        cut = [Stream(running.url, tokens=20, pause=0.05) for _ in range(7)]
        for stream in cut:
            stream.body["abort_after"] = 18
            stream.start()
        assert all(stream.begun.wait(20) for stream in streams + cut)
        running.send(signal.SIGTERM)
        assert running.wait_exit() == 128 + signal.SIGTERM
        stopped = running.event("stopped")
        assert (stopped["answered"], stopped["cut"]) == (5, 7)
        assert "7 of 12" in stopped["message"]


def test_a_server_that_dies_while_draining_has_cut_its_streams() -> None:
    with Supervised() as running:
        running.wait_event("ready")
        streams = begin(running, 9, tokens=1000, pause=0.05)
        assert all(stream.begun.wait(20) for stream in streams)
        running.send(signal.SIGTERM)
        assert running.wait_event("draining")["in_flight"] == 9
        os.kill(running.server_pid(), signal.SIGKILL)
        assert running.wait_exit() == 128 + signal.SIGTERM
        assert running.event("stopped")["cut"] == 9


def test_later_requests_are_counted_as_refused() -> None:
    with Supervised() as running:
        running.wait_event("ready")
        httpx.get(f"{running.url}/health?hang")
        (stream,) = begin(running, 1, tokens=3, pause=0.0)
        assert stream.begun.wait(20)
        running.send(signal.SIGTERM)
        running.wait_event("draining")
        for _ in range(4):
            assert httpx.post(f"{running.url}/v1/completions", json={}).status_code == 503
        httpx.get(f"{running.url}/health?resume")
        assert running.wait_exit() == 0
        stopped = running.event("stopped")
        assert (stopped["answered"], stopped["refused"]) == (1, 4)


LIMITS = {"max_body": 0.01, "header_timeout": 1.0, "body_timeout": 1.0}


@pytest.fixture(scope="module")
def limited() -> Supervised:
    with Supervised(options={"limits": LIMITS}) as running:
        running.wait_event("ready")
        yield running


def ask(running: Supervised, data: bytes) -> bytes:
    one = socket.create_connection(("127.0.0.1", running.port))
    one.sendall(data)
    return read_all(one)


HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"


@pytest.mark.parametrize(
    ("data", "status", "flag"),
    [
        (HEAD + b"content-length: 99999999\r\n\r\n", b"413", b"--max-body"),
        (HEAD + b"content-length: 20000\r\n\r\n" + b"x" * 20000, b"413", b"--max-body"),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n4e20\r\n" + b"x" * 20000 + b"\r\n0\r\n\r\n", b"413", b"--max-body"),
        (HEAD + b"content-length: 20\r\n\r\n{", b"408", b"--body-timeout"),
        (HEAD, b"408", b"--header-timeout"),
        (b"", b"408", b"--header-timeout"),
    ],
)
def test_bodies_and_heads_are_bounded(limited: Supervised, data: bytes, status: bytes, flag: bytes) -> None:
    answer = ask(limited, data)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert flag in answer
    assert b'"error"' in answer
    assert httpx.post(f"{limited.url}/v1/completions", json={"max_tokens": 1}).status_code == 200


def test_a_connection_may_stay_idle_between_requests(limited: Supervised) -> None:
    with httpx.Client() as client:
        for pause in (0.0, 1.5):
            threading.Event().wait(pause)
            assert client.post(f"{limited.url}/v1/completions", json={"max_tokens": 1}).status_code == 200
