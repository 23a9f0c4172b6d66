"""The admin app: ``/livez`` ``/readyz`` ``/plan`` ``/metrics`` ``/status`` and a status page at ``/``.

``GET /plan`` returns the plan of this launch, ``POST /plan`` makes another plan. Where a token is set, requests must
carry it as ``Authorization: Bearer``; only the two probes, which answer yes or no, need none.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from vllm_quant_serve.admin.page import status_page
from vllm_quant_serve.admin.status import status_document
from vllm_quant_serve.metrics.session import SessionCollector
from vllm_quant_serve.plan.http import plan_router
from vllm_quant_serve.supervise.session import Session
from vllm_quant_serve.supervise.state import State

WITHOUT_TOKEN = frozenset({"/livez", "/readyz"})
LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})
# A config.json with a long quantization_config fits.
MAX_BODY = 512 << 10
_ALIVE = frozenset(State) - {State.HUNG, State.STOPPED}


def build_app(session: Session, token: str | None = None) -> FastAPI:
    """The app over a session; with ``token``, requests must carry it."""
    app = FastAPI(title="vllm-quant serve", docs_url=None, redoc_url=None, openapi_url=None)
    registry = CollectorRegistry()
    registry.register(SessionCollector(session))

    app.include_router(plan_router())

    @app.middleware("http")
    async def check(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        refusal = _refuse(request, token)
        return refusal if refusal is not None else await call_next(request)

    @app.get("/livez")
    async def livez() -> Response:
        return _probe(session.state in _ALIVE, session.state)

    @app.get("/readyz")
    async def readyz() -> Response:
        return _probe(session.state is State.READY, session.state)

    @app.get("/plan")
    async def plan() -> Response:
        return JSONResponse({"plan": session.plan, "command": session.launch.line})

    @app.get("/status")
    async def status() -> Response:
        return JSONResponse(status_document(session))

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(generate_latest(registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    @app.get("/")
    async def page() -> Response:
        text, policy = status_page()
        return HTMLResponse(text, headers={"Content-Security-Policy": policy})

    return app


def _probe(good: bool, state: State) -> Response:
    return PlainTextResponse(f"{state.value}\n", status_code=200 if good else 503)


def _refuse(request: Request, token: str | None) -> Response | None:
    """The refusal of a request that is too large or not allowed; None when it may pass."""
    length = request.headers.get("content-length")
    if "transfer-encoding" in request.headers or not (length or "0").isdigit():
        # A body of unknown length has no bound.
        return PlainTextResponse("Content-Length required\n", status_code=411)
    if int(length or 0) > MAX_BODY:
        return PlainTextResponse("body too large\n", status_code=413)
    if request.url.path in WITHOUT_TOKEN:
        return None
    if token is None:
        # Without a token only loopback is bound; another host name means a page that rebinds DNS.
        name = request.headers.get("host", "").rsplit(":", 1)[0]
        return None if name in LOOPBACK_NAMES else PlainTextResponse("unknown host\n", status_code=421)
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if secrets.compare_digest(given.encode(), token.encode()):
        return None
    return PlainTextResponse("token required\n", status_code=401, headers={"WWW-Authenticate": "Bearer"})
