"""The drain gate by itself: what it counts, what it refuses, and that it is nothing without a supervisor."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vllm_quant_serve.supervise.run_directory as run_directory
from vllm_quant_serve.gate import OPEN_PATHS, DrainGate
from vllm_quant_serve.supervise.run_directory import VARIABLE, RunDirectory


def call(gate: DrainGate, path: str, kind: str = "http") -> list[dict[str, Any]]:
    """The messages that one request gets."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(dict(message))

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    asyncio.run(gate({"type": kind, "path": path}, receive, send))  # type: ignore[arg-type]
    return sent


def answering(seen: list[int], look: Callable[[], int]) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(look())
        await send({"type": "http.response.start", "status": 200, "headers": []})

    return app


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    monkeypatch.setattr(run_directory, "_attached", None)
    return RunDirectory(tmp_path)


def in_flight(run_dir: RunDirectory) -> int:
    return sum(page.in_flight for page in run_dir.pages())


def test_requests_are_counted_while_they_run(run_dir: RunDirectory) -> None:
    seen: list[int] = []
    gate = DrainGate(answering(seen, lambda: in_flight(run_dir)))
    for _ in range(3):
        call(gate, "/v1/completions")
    call(gate, "/health")
    assert seen == [1, 1, 1, 0], "probes are no work to wait for"
    (page,) = run_dir.pages()
    assert (page.pid, page.in_flight, page.begun) == (os.getpid(), 0, 3)


def test_a_request_that_fails_is_counted_out(run_dir: RunDirectory) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("broken")

    gate = DrainGate(app)
    with pytest.raises(RuntimeError):
        call(gate, "/v1/completions")
    assert in_flight(run_dir) == 0


def test_while_draining_new_requests_are_refused(run_dir: RunDirectory) -> None:
    gate = DrainGate(answering([], lambda: 0))
    run_dir.set_draining(True)
    start, body = call(gate, "/v1/completions")
    assert start["status"] == 503
    headers = dict(start["headers"])
    assert headers[b"connection"] == b"close"
    assert int(headers[b"content-length"]) == len(body["body"])
    assert call(gate, "/v1/realtime", "websocket")[0]["code"] == 1012
    for path in OPEN_PATHS:
        assert call(gate, path)[0]["status"] == 200
    run_dir.set_draining(False)
    assert call(gate, "/v1/completions")[0]["status"] == 200


def test_without_a_supervisor_it_is_transparent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert call(DrainGate(answering([], lambda: 0)), "/v1/completions")[0]["status"] == 200


def test_life_and_death_of_pages(run_dir: RunDirectory) -> None:
    DrainGate(answering([], lambda: 0))
    run_dir.write_metadata({"plan": {"a": 1}})
    run_dir.write_actuals({"kv_tokens": 5})
    assert run_directory.read_metadata() == {"plan": {"a": 1}}
    assert run_directory.read_actuals() == {"kv_tokens": 5}
    run_dir.forget_server()
    assert run_dir.pages() == []
    assert run_directory.read_actuals() == {}, "what an ended server told is forgotten"
    assert run_directory.read_metadata() is not None
    run_dir.remove()
    assert not run_dir.path.exists()
    assert run_directory.read_metadata() is None
