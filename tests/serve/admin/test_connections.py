"""Clients that hold connections, headers or bodies back: others are answered, and the holders are closed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.serve.admin.test_app import make_session
from vllm_quant_serve.admin import connections
from vllm_quant_serve.admin.server import AdminServer, bind

HEADERS = b"POST /plan HTTP/1.1\r\nHost: 127.0.0.1\r\n"
PROBE = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def serving(tmp_path: Path) -> AsyncIterator[int]:
    sock = bind("127.0.0.1", 0, 1, None)
    sock.listen()  # clients may come before the loop has turned
    server = AdminServer(make_session(tmp_path), sock, None)
    server.start()
    try:
        yield sock.getsockname()[1]
    finally:
        await server.stop()


async def probe(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(PROBE)
    answer = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    return answer


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.3)
    monkeypatch.setattr(connections, "ANSWER_SECONDS", 30.0)


def test_hundreds_of_half_open_connections_do_not_keep_a_probe_waiting(tmp_path: Path) -> None:
    """Within the real limits of time: the newest connection goes before the oldest that sends nothing."""

    async def run() -> None:
        async with serving(tmp_path) as port:
            held: list[Stream] = []
            for number in range(600):
                stream = await asyncio.open_connection("127.0.0.1", port)
                stream[1].write(HEADERS if number % 2 else b"")
                held.append(stream)
                if number % 100 == 99:
                    assert (await probe(port)).startswith(b"HTTP/1.1 200")
            closed = 0
            for reader, writer in held:
                with contextlib.suppress(TimeoutError, ConnectionError):
                    closed += await asyncio.wait_for(reader.read(), 0.001) in (b"",)
                writer.close()
            assert closed >= 600 - connections.MOST_CONNECTIONS - 1

    # Both ends are in this process: with 600 clients the usual limit of 1,024 descriptors suffices.
    asyncio.run(run())


@pytest.mark.parametrize(
    ("begin", "more", "answer"),
    [
        (b"", b"", b"HTTP/1.1 408"),
        (b"GET / HTTP/1.1\r\n", b"X-A: b\r\n", b"HTTP/1.1 408"),
        (HEADERS + b"Content-Length: 1000\r\n\r\n", b"x", b""),
        (HEADERS + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", b"HTTP/1.1 411"),
        (PROBE.replace(b"Connection: close\r\n", b""), b"GET", b"HTTP/1.1 200"),
    ],
    ids=["nothing", "slow headers", "slow body", "endless chunks", "slow second request"],
)
def test_what_arrives_slowly_is_closed(tmp_path: Path, hasty: None, begin: bytes, more: bytes, answer: bytes) -> None:
    async def run() -> bytes:
        async with serving(tmp_path) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(begin)

            async def drip() -> None:
                while True:
                    await asyncio.sleep(0.05)
                    with contextlib.suppress(ConnectionError):
                        writer.write(more)

            dripping = asyncio.create_task(drip())
            found = b""
            with contextlib.suppress(ConnectionError):  # reset: bytes were on their way
                while part := await asyncio.wait_for(reader.read(1 << 16), 30):
                    found += part
            dripping.cancel()
            writer.close()
            assert (await probe(port)).startswith(b"HTTP/1.1 200")
            return found

    found = asyncio.run(run())
    assert found.startswith(answer)
    assert found or not answer


def test_huge_headers_and_bodies_are_refused(tmp_path: Path) -> None:
    async def run() -> list[bytes]:
        async with serving(tmp_path) as port:
            answers = []
            for text in (
                b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * (1 << 20) + b"\r\n\r\n",
                HEADERS + b"Content-Length: 999999999999\r\n\r\n" + b"x" * (1 << 20),
            ):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                with contextlib.suppress(ConnectionError):
                    writer.write(text)
                try:
                    answers.append(await asyncio.wait_for(reader.read(12), 30))
                except ConnectionError:
                    answers.append(b"reset")
                writer.close()
            assert (await probe(port)).startswith(b"HTTP/1.1 200")
            return answers

    headers, body = asyncio.run(run())
    assert headers in (b"HTTP/1.1 400", b"HTTP/1.1 431", b"reset")
    assert body in (b"HTTP/1.1 413", b"reset")


def test_two_requests_at_once_are_both_answered(tmp_path: Path, hasty: None) -> None:
    async def run() -> bytes:
        async with serving(tmp_path) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(PROBE.replace(b"Connection: close\r\n", b"") + PROBE)
            return await asyncio.wait_for(reader.read(), 30)

    assert asyncio.run(run()).count(b"HTTP/1.1 200") == 2
