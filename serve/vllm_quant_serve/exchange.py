"""One HTTP request and its answer, as they pass the gate: bounded, timed, and counted by how they end."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from vllm_quant_serve.limits import Limits
from vllm_quant_serve.metrics.client_times import ClientTimes, client_times
from vllm_quant_serve.supervise.run_directory import PROBE_HEADER, ServerSide, probe_token

Message = MutableMapping[str, Any]

# Paths whose answers are generated text; a prefix (--root-path) may stand before them.
GENERATING = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages")
# How vLLM marks an answer that it ended early, in streams and in whole answers.
_ABORTED, _STREAM_ERROR = b'"finish_reason":"abort"', b'data: {"error"'
# Seconds in which the rest of a refused body is thrown away, so that the client gets to read the refusal.
LINGER = 5.0


class Exchange:
    """Wraps ``receive`` and ``send`` of one request that the gate has let in; ``close`` counts its end.

    Attributes:
        first_byte: seconds from the arrival of the head until the first byte of the body was handed to the connection;
            None before. A comment line of a stream (a keep-alive) is no answer.
    """

    def __init__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
        side: ServerSide,
        limits: Limits,
    ) -> None:
        self._arrived = time.monotonic()
        self._receive, self._send, self._side, self._limits = receive, send, side, limits
        headers = dict(scope.get("headers", ()))
        self._length = _length_of(headers)
        self._received = 0
        self._whole = self._refused = self._complete = self._broken = self._left = self._streamed = False
        self._status: int | None = None
        self.first_byte: float | None = None
        self._times: ClientTimes | None = None
        self.scope = scope
        if scope.get("path", "").endswith(GENERATING) and headers.get(PROBE_HEADER) != probe_token():
            self._times = client_times()
        self._key: str | None = None
        if self._times is not None:
            self._key, self.scope = self._times.open(scope, headers)
        if self._length == 0:
            self._begin()

    def _begin(self) -> None:
        self._whole = True
        self._side.begin()

    async def refused_by_head(self) -> bool:
        """Refuse a body that announces itself as too long; whether it did."""
        limit = self._limits.body_bytes
        if not limit or self._length is None or self._length <= limit:
            return False
        await self._refuse(413, "request_too_large", self._too_large())
        return True

    def _too_large(self) -> str:
        return f"the request's body exceeds {self._limits.max_body:g} MiB (--max-body)"

    async def receive(self) -> Message:
        """The next part of the request, or its end where it is too long or too slow."""
        if self._whole or self._refused:
            message = await self._receive() if not self._refused else {"type": "http.disconnect"}
            self._left |= message["type"] == "http.disconnect" and not self._complete
            return message
        try:
            async with asyncio.timeout(self._seconds_left()):
                message = await self._receive()
        except TimeoutError:
            seconds = f"{self._limits.body_timeout:g} s (--body-timeout)"
            await self._refuse(408, "request_timeout", f"the request's body did not arrive within {seconds}")
            return {"type": "http.disconnect"}
        if message["type"] != "http.request":
            self._left = True
            return message
        self._received += len(message.get("body", b""))
        if self._limits.body_bytes and self._received > self._limits.body_bytes:
            await self._refuse(413, "request_too_large", self._too_large())
            return {"type": "http.disconnect"}
        if not message.get("more_body"):
            self._begin()
        return message

    def _seconds_left(self) -> float | None:
        limit = self._limits.body_timeout
        return max(limit - (time.monotonic() - self._arrived), 0.0) if limit else None

    async def send(self, message: Message) -> None:
        """Pass a part of the answer on."""
        if self._refused:  # it has its answer
            return
        await self._send(message)
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._streamed = dict(message.get("headers", ())).get(b"content-type", b"").startswith(b"text/event-stream")
        elif message["type"] == "http.response.body":
            chunk = message.get("body", b"")
            if self.first_byte is None and chunk and not chunk.startswith(b":"):
                self.first_byte = time.monotonic() - self._arrived
            self._broken |= _ABORTED in chunk or chunk.startswith(_STREAM_ERROR)
            self._complete = not message.get("more_body")

    async def _refuse(self, status: int, kind: str, text: str) -> None:
        """Answer in place of the app, in the form of OpenAI's errors, and close the connection."""
        self._refused = True
        if self._status is not None:  # the answer has begun; closing the connection is all that is left
            return
        body = json.dumps({"error": {"message": text, "type": kind, "param": None, "code": status}}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
                   (b"connection", b"close")]  # fmt: skip
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
        if status == 413:
            await self._discard()
        await self._send({"type": "http.response.body", "body": b""})

    async def _discard(self) -> None:
        """Read on for a moment: a connection that is closed with unread data is reset, and the answer is lost."""
        try:
            async with asyncio.timeout(LINGER):
                while (message := await self._receive())["type"] == "http.request" and message.get("more_body"):
                    continue
        except TimeoutError:
            return

    def close(self) -> None:
        """Count the end."""
        answered = self._complete and not self._broken and (self._status or 500) < 500
        if self._whole:
            self._side.end(answered=answered, broken=not answered and not self._left)
        else:
            self._side.dismiss()
        if self._times is not None and self._key is not None:
            good = answered and self._status == 200 and self.first_byte is not None
            self._times.close(self._key, self.first_byte if good else None, streamed=self._streamed)


def _length_of(headers: dict[bytes, bytes]) -> int | None:
    """Bytes of the body by the head; None where it does not say."""
    if b"transfer-encoding" in headers:
        return None
    text = headers.get(b"content-length", b"0")
    return int(text) if text.isdigit() else None
