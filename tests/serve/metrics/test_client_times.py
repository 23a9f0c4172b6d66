"""Times as clients see them: the gate's first byte, and which requests met the objective by it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import vllm_quant_serve.supervise.run_directory as run_directory
from vllm_quant_serve.gate import DrainGate
from vllm_quant_serve.metrics import client_times
from vllm_quant_serve.metrics.client_times import ClientTimes, set_client_times
from vllm_quant_serve.metrics.slo import Objective
from vllm_quant_serve.supervise.run_directory import PROBE_HEADER, VARIABLE, RunDirectory

DELAY = 0.2


class Recorded:
    """A ``ClientTimes`` whose results are kept."""

    def __init__(self) -> None:
        self.first_bytes: list[tuple[float, bool]] = []
        self.judged: list[tuple[float, list[Any]]] = []
        self.times = ClientTimes(
            lambda seconds, streamed: self.first_bytes.append((seconds, streamed)),
            lambda seconds, finished: self.judged.append((seconds, list(finished))),
        )


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    monkeypatch.setattr(run_directory, "_attached", None)
    monkeypatch.setattr(client_times, "JUDGE_AFTER", 0.05)
    RunDirectory(tmp_path)
    found = Recorded()
    set_client_times(found.times)
    yield found
    set_client_times(None)


def ask(app: Any, headers: list[tuple[bytes, bytes]] | None = None) -> list[tuple[float, bytes]]:
    """One completion through the gate: (seconds since it was sent, chunk) of what the client receives."""

    async def run() -> list[tuple[float, bytes]]:
        loop = asyncio.get_running_loop()
        begin, got = loop.time(), []

        async def send(message: Any) -> None:
            if message.get("body"):
                got.append((loop.time() - begin, message["body"]))

        async def receive() -> Any:
            return {"type": "http.request", "body": b"{}"}

        await DrainGate(app)({"type": "http", "path": "/v1/completions", "headers": headers or []}, receive, send)
        await asyncio.sleep(0.15)
        return got

    return asyncio.run(run())


def app_that(*parts: Any, stream: bool, status: int = 200, finished: list[Any] | None = None) -> Any:
    """An app that sends its parts, waiting where a part is a number; it reports ``finished`` under the request's id."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        key = dict(scope["headers"])[b"x-request-id"].decode()
        kind = b"text/event-stream" if stream else b"application/json"
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
        for part in parts:
            if isinstance(part, bytes):
                await send({"type": "http.response.body", "body": part, "more_body": True})
            else:
                await asyncio.sleep(part)
        for index, one in enumerate(finished or []):
            one.request_id = f"cmpl-{key}-{index}"
            assert client_times.client_times().attach(one)
        await send({"type": "http.response.body", "body": b""})

    return app


@pytest.mark.parametrize("parts", [(DELAY, b"data: a", DELAY, b"data: b"), (b": keep-alive\n\n", DELAY, b"data: a")])
def test_a_stream_begins_with_its_first_chunk(recorded: Recorded, parts: tuple[Any, ...]) -> None:
    chunks = ask(app_that(*parts, stream=True))
    ((seconds, streamed),) = recorded.first_bytes
    client = next(at for at, chunk in chunks if chunk.startswith(b"data"))
    assert streamed
    assert seconds >= DELAY, "a delayed first chunk counts with its delay"
    assert seconds <= chunks[-1][0] or len(chunks) == 2
    assert client >= DELAY


def test_an_answer_that_is_not_streamed_begins_with_its_end(recorded: Recorded) -> None:
    ask(app_that(DELAY, DELAY, b"{}", stream=False))
    ((seconds, streamed),) = recorded.first_bytes
    assert not streamed
    assert seconds >= 2 * DELAY


def test_each_chunk_is_passed_on_as_it_comes(recorded: Recorded) -> None:
    chunks = ask(app_that(b"data: a", DELAY, b"data: b", stream=True))
    assert chunks[1][0] - chunks[0][0] >= DELAY, "nothing is held back"


def test_failures_aborts_and_probes_are_no_clients_answers(recorded: Recorded, tmp_path: Path) -> None:
    ask(app_that(b"{}", stream=False, status=500))
    ask(app_that(b'data: {"choices":[{"finish_reason":"abort"}]}', stream=True))
    ask(app_that(b'data: {"error": {}}', stream=True))

    async def plain(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    ask(plain, [(PROBE_HEADER, tmp_path.name.encode())])
    assert recorded.first_bytes == []
    ask(plain, [(PROBE_HEADER, b"a guess")])
    assert len(recorded.first_bytes) == 1


def test_the_objective_is_judged_by_what_the_client_saw(recorded: Recorded) -> None:
    """The engine says 0 s; the client waited."""
    done = [SimpleNamespace(mean_time_per_output_token=0.01, num_generation_tokens=5) for _ in range(2)]
    ask(app_that(DELAY, b"data: a", stream=True, finished=done))
    ((seconds, finished),) = recorded.judged
    assert finished == done
    assert not Objective(ttft=DELAY, tpot=None).met(seconds, finished)
    assert Objective(ttft=60.0, tpot=0.01).met(seconds, finished)
    assert not Objective(ttft=None, tpot=0.005).met(seconds, finished)


def test_ids_of_the_clients_choice(recorded: Recorded) -> None:
    times = recorded.times
    first, scope = times.open({}, {b"x-request-id": b"mine-7"})
    assert (first, scope) == ("mine-7", {})
    assert times.open({}, {b"x-request-id": b"mine-7"})[0] == ""
    assert times.attach(SimpleNamespace(request_id="chatcmpl-mine-7"))
    assert times.attach(SimpleNamespace(request_id="cmpl-mine-7-0"))
    for unknown in ("cmpl-other-0", "resp_1", None):
        assert not times.attach(SimpleNamespace(request_id=unknown))
    times.close(first, None, streamed=False)
    assert not times.attach(SimpleNamespace(request_id="cmpl-mine-7-0"))
