"""HTTP/1.1 connections of the admin app that cannot be held: few, for a limited time, and with the newest preferred.

uvicorn limits neither the time that a request may take to arrive nor the number of open connections, and the app shares
its process, and its file descriptors, with the launcher. So a request has a few seconds to arrive whole, its answer a
minute to be taken, and where too many connections are open, the one that has waited longest without a whole request is
closed for the new one: a probe that asks at once is answered whoever else holds connections.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MOST_CONNECTIONS = 128
# From the first byte that is waited for to the last byte of the request.
REQUEST_SECONDS = 10.0
# From there to the last byte of the answer; above what a plan may take.
ANSWER_SECONDS = 60.0
_LATE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class BoundedProtocol(H11Protocol):
    """uvicorn's protocol with limits of time and number."""

    _timer: asyncio.TimerHandle | None = None
    _whole = False
    _since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_request()
        if len(self.connections) <= MOST_CONNECTIONS:
            return
        waiting = [one for one in self.connections if isinstance(one, BoundedProtocol) and not one._whole]
        oldest = min(waiting, key=lambda one: one._since, default=self)
        oldest.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._note_whole_request()

    def on_response_complete(self) -> None:
        self._expect_request()
        super().on_response_complete()
        self._note_whole_request()  # one that was sent before the answer to the one before it

    def abort(self) -> None:
        """Close at once, also where the peer does not read."""
        self._cancel()
        self.connections.discard(self)
        self.transport.abort()

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            self.abort()
        else:
            super().timeout_keep_alive_handler()

    def _expect_request(self) -> None:
        self._whole = False
        self._since = self.loop.time()
        self._start(REQUEST_SECONDS)

    def _start(self, seconds: float) -> None:
        self._cancel()
        self._timer = self.loop.call_later(seconds, self._expire)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _note_whole_request(self) -> None:
        if not self._whole and self.conn.their_state in (h11.DONE, h11.MUST_CLOSE):
            self._whole = True
            self._start(ANSWER_SECONDS)

    def _expire(self) -> None:
        if not self._whole and self.conn.our_state is h11.IDLE and not self.transport.is_closing():
            self.transport.write(_LATE)
        if self.transport.get_write_buffer_size():
            self.abort()
        else:
            self._cancel()
            self.transport.close()


def uvicorn_options() -> dict[str, Any]:
    """Options of ``uvicorn.Config`` for bounded connections."""
    return {
        "http": BoundedProtocol,
        "ws": "none",
        # Connections that are accepted in one turn of the event loop hold descriptors until the next.
        "backlog": MOST_CONNECTIONS,
        "h11_max_incomplete_event_size": 16 << 10,
        "timeout_keep_alive": 5,
    }
