"""The small app beside the server: ``/livez`` ``/readyz`` ``/plan`` ``/metrics`` ``/status`` and a page at ``/``.

``GET /plan`` shows the plan of this launch, ``POST /plan`` answers another planning question.

It listens on loopback. On another address it demands a token (``VQP_ADMIN_TOKEN``, as ``Authorization:
Bearer``) for all but the two probes, which tell nothing but yes or no.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from vllm_quant_plugin.errors import StartupError, UsageError
from vllm_quant_serve.launch import LOOPBACK
from vllm_quant_serve.metrics.session import SessionCollector
from vllm_quant_serve.plan.http import plan_router
from vllm_quant_serve.supervise.state import State

if TYPE_CHECKING:
    from vllm_quant_serve.supervise.session import Session

TOKEN_VARIABLE = "VQP_ADMIN_TOKEN"
OPEN = frozenset({"/livez", "/readyz"})
LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})
# A config.json with a long quantization_config fits.
MAX_BODY = 512 << 10
PAGE = Path(__file__).with_name("page.html")
_ALIVE = frozenset(State) - {State.HUNG, State.STOPPED}


def build_app(supervisor: Session, token: str | None = None) -> FastAPI:
    """The app over a supervisor; with ``token`` requests must carry it."""
    app = FastAPI(title="vllm-quant serve", docs_url=None, redoc_url=None, openapi_url=None)
    registry = CollectorRegistry()
    registry.register(SessionCollector(supervisor))

    app.include_router(plan_router())
    planning = asyncio.Lock()

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        refusal = _refuse(request, token)
        if refusal is not None:
            return refusal
        if request.method != "POST":
            return await call_next(request)
        # A plan takes the supervisor's process up to a second of one core: one at a time.
        if planning.locked():
            return PlainTextResponse("another plan is being made\n", status_code=503, headers={"Retry-After": "1"})
        async with planning:
            return await call_next(request)

    @app.get("/livez")
    async def livez() -> Response:
        return _probe(supervisor.state in _ALIVE, supervisor.state)

    @app.get("/readyz")
    async def readyz() -> Response:
        return _probe(supervisor.state is State.READY, supervisor.state)

    @app.get("/plan")
    async def plan() -> Response:
        return JSONResponse({"plan": supervisor.plan, "command": supervisor.launch.line})

    @app.get("/status")
    async def status() -> Response:
        return JSONResponse(supervisor.status())

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(generate_latest(registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    @app.get("/")
    async def page() -> Response:
        return HTMLResponse(PAGE.read_text("utf-8"), headers={"Content-Security-Policy": _POLICY})

    return app


# The page's own inline script and style, and its requests to /status; nothing from elsewhere.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:"


def _probe(good: bool, state: State) -> Response:
    return PlainTextResponse(f"{state.value}\n", status_code=200 if good else 503)


def _refuse(request: Request, token: str | None) -> Response | None:
    length = request.headers.get("content-length")
    if "transfer-encoding" in request.headers or not (length or "0").isdigit():
        # A body of unknown length has no bound.
        return PlainTextResponse("Content-Length required\n", status_code=411)
    if int(length or 0) > MAX_BODY:
        return PlainTextResponse("body too large\n", status_code=413)
    if request.url.path in OPEN:
        return None
    if token is None:
        # Without a token only loopback is bound; a foreign name here is a page that rebinds DNS.
        name = request.headers.get("host", "").rsplit(":", 1)[0]
        return None if name in LOOPBACK_NAMES else PlainTextResponse("unknown host\n", status_code=421)
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if secrets.compare_digest(given.encode(), token.encode()):
        return None
    return PlainTextResponse("token required\n", status_code=401, headers={"WWW-Authenticate": "Bearer"})


def bind(host: str, port: int | None, server_port: int, token: str | None) -> socket.socket:
    """The socket of the app.

    Args:
        port: as the user gave it; None takes the one after the server's, or else any free one.

    Raises:
        UsageError: another address than loopback without a token.
        StartupError: the port the user gave is taken.
    """
    if host not in ("127.0.0.1", "::1", "localhost") and not token:
        raise UsageError(f"--admin-host {host} needs a token", f"set {TOKEN_VARIABLE}, or leave the app on {LOOPBACK}")
    for candidate in (port,) if port is not None else (server_port + 1, 0):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # asyncio turns Nagle's algorithm off only where the protocol is named: without, answers wait 40 ms.
        found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((host, candidate))
            return found
        except (OSError, OverflowError) as err:
            found.close()
            if port is not None:
                raise StartupError(f"--admin-port {port}: {err}", "choose another, or --no-admin") from None
    raise StartupError("no free port for the admin app", "name one with --admin-port, or --no-admin")


class _QuietServer(uvicorn.Server):
    """uvicorn without signal handlers: signals are the supervisor's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class AdminServer:
    """Serves the app in the running event loop; ``address`` says where."""

    def __init__(self, supervisor: Session, sock: socket.socket, token: str | None) -> None:
        host, port = sock.getsockname()[:2]
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        config = uvicorn.Config(build_app(supervisor, token), log_level="warning", access_log=False, lifespan="off")
        self._server = _QuietServer(config)
        self._socket = sock
        self._task: asyncio.Task[Any] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._server.serve(sockets=[self._socket]))

    async def stop(self) -> None:
        if self._task is None:
            return
        self._server.should_exit = True
        # A status page that is open must not hold up the end.
        self._server.force_exit = True
        await self._task
