"""The gate: ASGI middleware in vLLM's API server that counts, bounds and times requests, and closes for a drain.

``--middleware vllm_quant_serve.gate.DrainGate`` adds it. vLLM's own shutdown stops the engine while its HTTP server
still accepts requests. Behind the gate a request in flight always finishes, and a new one is answered with 503.
Nothing is buffered: each part of a request or an answer is passed on as it comes. Without a supervisor the gate is
transparent.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from vllm_quant_serve.exchange import Exchange
from vllm_quant_serve.header_timeout import limit_header_time
from vllm_quant_serve.limits import Limits
from vllm_quant_serve.supervise.run_directory import attach, read_metadata

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

# Always answered and never counted: a drain need not wait for probes and scrapes.
OPEN_PATHS = frozenset({"/health", "/ping", "/metrics", "/metrics/", "/version", "/load", "/v1/models"})
_REFUSAL = json.dumps(
    {"error": {"message": "the server is shutting down", "type": "server_draining", "param": None, "code": 503}}
).encode()


class DrainGate:
    """Counts requests in the run directory and refuses new ones while the supervisor drains."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.side = attach()
        self.limits = Limits.read(read_metadata() or {})

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        side = self.side
        if side is None or scope["type"] not in ("http", "websocket") or scope.get("path") in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        if side.draining:
            side.refuse()
            await _refuse(scope, send)
            return
        # No await between the test and the count: the supervisor sets the flag first and then waits for
        # zero, so it cannot miss a request that passed.
        side.arrive()
        if scope["type"] == "websocket":
            side.begin()
            try:
                await self.app(scope, receive, send)
            finally:
                side.end(answered=True, broken=False)
            return
        exchange = Exchange(scope, receive, send, side, self.limits)
        try:
            if await exchange.refused_by_head():
                return
            await self.app(exchange.scope, exchange.receive, exchange.send)
        finally:
            exchange.close()


async def _refuse(scope: Message, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1012, "reason": "the server is shutting down"})
        return
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(_REFUSAL)).encode()),
        (b"retry-after", b"5"),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": _REFUSAL})


# vLLM imports its middleware in each API server process before it configures uvicorn, and offers no other hook for the
# time in which a request's head must arrive.
if attach() is not None:
    limit_header_time(Limits.read(read_metadata() or {}).header_timeout)
