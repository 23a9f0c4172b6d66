"""A time limit for a request's head on uvicorn's connections.

uvicorn waits without limit for the first bytes of a connection and for the rest of a head that has begun; its
keep-alive timeout covers only the silence after an answer. An ASGI application sees neither, so the protocol classes
are derived.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import uvicorn.config

_BODY = json.dumps({
    "error": {"message": "the request's head did not arrive in time (--header-timeout)", "type": "request_timeout",
              "param": None, "code": 408}
}).encode()  # fmt: skip
_ANSWER = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%s" % (len(_BODY), _BODY)
)


def timed(protocol: type, seconds: float) -> type:
    """``protocol``, one of uvicorn's HTTP protocols, with ``seconds`` for each head.

    The time runs from the connection, or on a connection that has had an answer from the first byte after it.
    """

    class Timed(protocol):
        _head_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._expect_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            # Another protocol (a WebSocket) may have taken the connection over.
            if self.transport.is_closing() or self.transport.get_protocol() is not self:
                self._stop_timer()
            elif self.cycle is None or self.cycle.response_complete:
                self._expect_head()
            else:
                self._stop_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def _expect_head(self) -> None:
            if self._head_timer is None:
                self._head_timer = self.loop.call_later(seconds, self._head_is_late)

        def _stop_timer(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _head_is_late(self) -> None:
            self._head_timer = None
            if not self.transport.is_closing():
                self.transport.write(_ANSWER)
                self.transport.close()

    return Timed


def limit_header_time(seconds: float) -> None:
    """Give every HTTP connection of uvicorn servers configured from now on ``seconds`` for each head; 0 is no limit."""
    if not seconds:
        return
    for name in ("auto", "httptools", "h11"):
        chosen = uvicorn.config.HTTP_PROTOCOLS[name]
        protocol = uvicorn.config.import_from_string(chosen) if isinstance(chosen, str) else chosen
        uvicorn.config.HTTP_PROTOCOLS[name] = timed(protocol, seconds)  # type: ignore[assignment]
