"""One launcher per port, and ready only by the launcher's own server."""

from __future__ import annotations

import http.server
import os
import signal
import socket
import threading
from pathlib import Path

import pytest

from tests.support.supervised import Supervised, can_bind, free_port, wait_gone
from vllm_quant_plugin.errors import StartupError
from vllm_quant_serve.flags import parse_args
from vllm_quant_serve.launch import Endpoint, hold_address
from vllm_quant_serve.supervise.listeners import held_inodes, holder_of, listening_inodes


@pytest.mark.parametrize("key", [[], ["--api-key", "secret"]])
def test_a_second_launcher_fails_at_once_and_names_the_first(key: list[str]) -> None:
    with Supervised("--fake-load", "60", *key) as first:
        first.wait_event("started")
        with Supervised(*key, port=first.port) as second:
            assert second.wait_exit(30) == 4
            message = second.error()["message"]
            assert f"pid {first.process.pid}" in message
            assert "fake/model" in message
            assert "started" not in second.names()
            assert second.logged().strip().count("\n") == 0, "one line"
        first.send(signal.SIGKILL)
        first.process.wait()
    with Supervised(port=first.port) as third:
        third.wait_event("ready")
        third.send()
        assert third.wait_exit() == 0


def test_two_that_start_together_are_never_both_ready() -> None:
    port = free_port()
    with Supervised("--fake-load", "2", port=port) as one, Supervised("--fake-load", "2", port=port) as two:
        codes = {}
        for running in (one, two):
            try:
                running.wait_event("ready")
            except AssertionError:
                codes[running] = running.process.wait(30)
        assert list(codes.values()) == [4]


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers every request as a loaded server would; keeps their API keys."""

    keys: list[str | None] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.keys.append(self.headers["authorization"])
        body = b'{"data": [{"id": "another"}]}'
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *words: object) -> None:
        return


def test_another_server_is_never_reported_as_ready() -> None:
    """It takes the port after the launcher has found it free, while the own server loads."""
    with Supervised("--fake-load", "60", "--api-key", "secret") as running:
        running.wait_event("started")
        processes = running.descendants()
        other = http.server.ThreadingHTTPServer(("127.0.0.1", running.port), Answers)
        threading.Thread(target=other.serve_forever, daemon=True).start()
        assert running.wait_exit(30) == 4
        assert f"pid {os.getpid()}" in running.error()["message"]
        assert "ready" not in running.names()
        assert Answers.keys == [], "nobody else gets the API key"
        assert wait_gone(processes) == []
        other.shutdown()
        other.server_close()


def hold(port: int, host: str | None) -> object:
    return hold_address(parse_args(["m", "--port", str(port), *(["--host", host] if host is not None else [])]))


def test_which_addresses_exclude_each_other() -> None:
    port = free_port()
    held = hold(port, None)
    for host in ("127.0.0.1", "0.0.0.0", "localhost", ""):
        with pytest.raises(StartupError, match=f"port {port} is held by"):
            hold(port, host)
    other = hold(port, "127.0.0.2")
    another_port = hold(free_port(), None)
    for one in (held, other, another_port):
        one.close()  # type: ignore[attr-defined]
    everything = hold(port, "0.0.0.0")
    with pytest.raises(StartupError):
        hold(port, "127.0.0.2")
    everything.close()  # type: ignore[attr-defined]
    hold(port, None).close()  # type: ignore[attr-defined]


def test_a_socket_path_is_held_and_a_stale_one_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    words = parse_args(["m", "--uds", str(path)])
    held = hold_address(words)
    with pytest.raises(StartupError, match="held by"):
        hold_address(words)
    held.close()
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    hold_address(words).close()
    assert not path.exists(), "its server was gone"
    with socket.socket(socket.AF_UNIX) as alive:
        alive.bind(str(path))
        alive.listen()
        with pytest.raises(StartupError, match="exists already"):
            hold_address(words)
        assert listening_inodes(Endpoint(uds=str(path))) <= held_inodes([os.getpid()])
    path.unlink()
    path.write_text("a file")
    with pytest.raises(StartupError, match="exists already"):
        hold_address(words)
    assert path.read_text() == "a file"


@pytest.mark.parametrize(("family", "bound", "asked"), [
    (socket.AF_INET, "127.0.0.1", "127.0.0.1"), (socket.AF_INET, "0.0.0.0", "127.0.0.1"),
    (socket.AF_INET, "127.0.0.1", ""), (socket.AF_INET6, "::1", "::1"), (socket.AF_INET6, "::", "127.0.0.1"),
])  # fmt: skip
def test_listeners_are_found_with_their_holder(family: socket.AddressFamily, bound: str, asked: str) -> None:
    with socket.socket(family) as one:
        one.bind((bound, 0))
        port = one.getsockname()[1]
        assert listening_inodes(Endpoint(asked, port)) == set(), "bound is not listening"
        one.listen()
        found = listening_inodes(Endpoint(asked, port))
        assert found == {os.fstat(one.fileno()).st_ino}
        assert found <= held_inodes([os.getpid()])
        assert f"(pid {os.getpid()})" in holder_of(found)
        assert listening_inodes(Endpoint("127.0.0.9" if bound == "127.0.0.1" else asked, port + 1)) == set()
    assert can_bind(port)
