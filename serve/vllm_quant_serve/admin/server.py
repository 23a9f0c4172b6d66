"""Where the admin app listens: on loopback, or on another address with a token (``VQP_ADMIN_TOKEN``)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

from vllm_quant_kernels import env
from vllm_quant_plugin.errors import StartupError, UsageError
from vllm_quant_serve.admin.app import build_app
from vllm_quant_serve.admin.connections import uvicorn_options
from vllm_quant_serve.launch import LOOPBACK
from vllm_quant_serve.supervise.session import Session

TOKEN_VARIABLE = "VQP_ADMIN_TOKEN"


def admin_token() -> str | None:
    """The token in the environment, None without one."""
    return env.text(TOKEN_VARIABLE)


def bind(host: str, port: int | None, server_port: int, token: str | None) -> socket.socket:
    """The socket of the app.

    Args:
        port: the user's choice; None takes the one after the server's, or else any free one.

    Raises:
        UsageError: another address than loopback without a token.
        StartupError: the user's port is taken.
    """
    if host not in ("127.0.0.1", "::1", "localhost") and not token:
        raise UsageError(f"--admin-host {host} needs a token", f"set {TOKEN_VARIABLE}, or leave the app on {LOOPBACK}")
    for candidate in (port,) if port is not None else (server_port + 1, 0):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # asyncio turns Nagle's algorithm off only for sockets that name their protocol; with it, answers wait 40 ms.
        found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((host, candidate))
            # From now on, or a second launcher could bind the same port (SO_REUSEADDR) until uvicorn listens.
            found.listen(128)
            return found
        except (OSError, OverflowError) as err:
            found.close()
            if port is not None:
                raise StartupError(f"--admin-port {port}: {err}", "choose another, or --no-admin") from None
    raise StartupError("no free port for the admin app", "name one with --admin-port, or --no-admin")


class _QuietServer(uvicorn.Server):
    """uvicorn without signal handlers: the session handles signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class AdminServer:
    """Serves the app in the running event loop.

    Attributes:
        address: URL of the app.
    """

    def __init__(self, session: Session, sock: socket.socket, token: str | None) -> None:
        host, port = sock.getsockname()[:2]
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        config = uvicorn.Config(
            build_app(session, token), log_level="error", access_log=False, lifespan="off", **uvicorn_options()
        )
        self._server = _QuietServer(config)
        self._socket = sock
        self._task: asyncio.Task[Any] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._server.serve(sockets=[self._socket]))

    async def stop(self) -> None:
        if self._task is None:
            return
        self._server.should_exit = True
        # An open status page must not delay the end.
        self._server.force_exit = True
        await self._task
