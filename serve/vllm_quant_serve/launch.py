"""What is launched: the argument list, the environment, and the address of the server."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shlex
import socket
import stat
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vllm_quant_plugin.errors import StartupError, UsageError
from vllm_quant_serve.flags import ServeArgs
from vllm_quant_serve.port_lock import PREFIX, PortLock, lock_names
from vllm_quant_serve.server import API_KEYS

LOOPBACK = "127.0.0.1"
DEFAULT_PORT = 8000
GATE = "vllm_quant_serve.gate.DrainGate"


@dataclass(frozen=True)
class Endpoint:
    """Where the server listens: a TCP address or a Unix socket. ``host`` "" is every interface."""

    host: str = LOOPBACK
    port: int = DEFAULT_PORT
    tls: bool = False
    uds: str | None = None

    @property
    def url(self) -> str:
        """Base address for a client on this machine."""
        if self.uds:
            return "http://localhost"
        host = {"": LOOPBACK, "0.0.0.0": LOOPBACK, "::": "::1"}.get(self.host, self.host)
        return f"http{'s' if self.tls else ''}://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def where(self) -> str:
        """The address in words."""
        return f"--uds {self.uds}" if self.uds else f"{self.host or 'all interfaces'} port {self.port}"

    def lock(self, model: str) -> PortLock:
        """Hold the address against other launchers.

        Raises:
            StartupError: another launcher holds it, or the host is no address of this machine.
        """
        if self.uds:
            name, prefix = f"{PREFIX}/uds/{hashlib.sha256(os.path.abspath(self.uds).encode()).hexdigest()}", ""
        else:
            name, prefix = lock_names(self.port, str(self._resolve()[2][0]))
        return PortLock.acquire(name, prefix, self.where, {"model": model})

    def _resolve(self) -> tuple[socket.AddressFamily, socket.SocketKind, tuple[Any, ...]]:
        try:
            family, kind, _, _, address = socket.getaddrinfo(
                self.host or "0.0.0.0", self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
        except (OSError, OverflowError) as err:
            raise StartupError(f"--host {self.host}: {err}", "give an address of this machine") from None
        return family, kind, address

    def check_free(self) -> None:
        """Bind the server's address, so that a taken port is found before the model loads.

        Raises:
            StartupError: the port is in use or may not be bound, or the host is no address of this machine.
        """
        if self.uds:
            if _is_stale(self.uds):
                os.unlink(self.uds)
            if os.path.exists(self.uds):
                raise StartupError(f"--uds {self.uds}: exists already", "remove the file or stop the server behind it")
            return
        where = self.where
        family, kind, address = self._resolve()
        with socket.socket(family, kind) as probe:
            # As vLLM does: a connection in TIME_WAIT is no obstacle, a listener is.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as err:
                if err.errno == errno.EADDRINUSE:
                    raise StartupError(f"{where} is in use{_holder(self.port)}", "choose another with --port") from None
                raise StartupError(f"{where}: {err.strerror}", "choose another --host or --port") from None


def _is_stale(path: str) -> bool:
    """Whether a Unix socket's server is gone: the file stays when a server is killed."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(path)
        except ConnectionRefusedError:
            return stat.S_ISSOCK(os.stat(path).st_mode)
        except OSError:
            return False
    return False


def _holder(port: int) -> str:
    """`` by NAME (pid N)`` for the process that listens on ``port``, "" when it cannot be seen."""
    import psutil

    try:
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and getattr(connection.laddr, "port", None) == port
            if listens and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except (psutil.Error, OSError):
        return ""
    return ""


@dataclass(frozen=True)
class Launch:
    """One way to start the server.

    Attributes:
        model: what to serve.
        planned: flags that the launcher adds; the user set none of them.
        words: the user's own flags, untouched.
        endpoint: where it will listen.
        api_keys: keys that leave the command line for the environment.
        probe_key: the key the launcher's own requests carry.
        variables: environment variables that the plan needs and the user did not set.
        headless: no HTTP server to probe (``--headless``, ``--grpc``): a living process counts as ready.
        program: the command that runs with ``serve_args``.
    """

    model: str
    planned: tuple[str, ...]
    words: tuple[str, ...]
    endpoint: Endpoint
    api_keys: tuple[str, ...] = ()
    probe_key: str | None = None
    variables: tuple[tuple[str, str], ...] = ()
    headless: bool = False
    program: tuple[str, ...] = (sys.executable, "-m", "vllm_quant_serve.server")

    @property
    def serve_args(self) -> list[str]:
        """The arguments of ``vllm``. The user's come last: of two equal flags argparse keeps the last."""
        return ["serve", self.model, *self.planned, *self.words]

    @property
    def argv(self) -> list[str]:
        """The command that runs: the arguments of ``line`` after this package's entry point to vLLM's command line."""
        return [*self.program, *self.serve_args]

    @property
    def line(self) -> str:
        """The ``vllm serve`` line with its variables, quoted for a POSIX shell."""
        variables = "".join(f"{name}={shlex.quote(value)} " for name, value in self.variables)
        return variables + shlex.join(["vllm", *self.serve_args])

    @property
    def environment(self) -> dict[str, str]:
        """Variables added to the server's environment; API keys are here, never on a command line."""
        keys = {API_KEYS: json.dumps(self.api_keys)} if self.api_keys else {}
        return {**dict(self.variables), **keys}

    def with_planned(self, planned: Sequence[str]) -> Launch:
        return replace(self, planned=tuple(planned))


def endpoint_of(words: ServeArgs) -> Endpoint:
    """Where the server listens by the user's flags: on loopback unless ``--host`` names another address.

    Raises:
        UsageError: ``--port`` is no port.
    """
    given = words.integer("--port")
    port = DEFAULT_PORT if given is None else given
    if not 0 < port < 65536:
        raise UsageError(f"--port {port} is not a port", "give a number from 1 to 65535")
    host = words.text("--host")
    tls = words.has("--ssl-keyfile") and words.has("--ssl-certfile")
    return Endpoint(LOOPBACK if host is None else host, port, tls, words.text("--uds"))


def hold_address(words: ServeArgs) -> PortLock:
    """Hold the server's address against other launchers and see that nobody listens there.

    Raises:
        StartupError: another launcher holds it, a process listens there, or it cannot be bound.
        UsageError: ``--port`` is no port.
    """
    endpoint = endpoint_of(words)
    lock = endpoint.lock(words.model)
    try:
        endpoint.check_free()
    except StartupError:
        lock.close()
        raise
    return lock


def build_launch(words: ServeArgs, planned: Sequence[str], variables: Mapping[str, str] | None = None) -> Launch:
    """The launch for the user's arguments, the planner's flags and its environment variables.

    Flags of the planner that the user set, in any spelling or in the ``--config`` file, are dropped, and so are
    variables that are set already.
    """
    keys, rest = take_api_keys(words.words)
    headless = words.switch("--headless") or words.switch("--grpc")
    own: list[str] = []
    if not words.has("--host") and not words.has("--uds"):
        own += ["--host", LOOPBACK]
    if not headless:
        own += ["--middleware", GATE]
    return Launch(
        model=words.model,
        planned=(*drop_user_set(planned, words), *own),
        words=rest,
        endpoint=endpoint_of(words),
        api_keys=keys,
        probe_key=keys[0] if keys else words.text("--api-key") or os.environ.get("VLLM_API_KEY") or None,
        variables=tuple((name, value) for name, value in (variables or {}).items() if name not in os.environ),
        headless=headless,
    )


def drop_user_set(planned: Sequence[str], words: ServeArgs) -> list[str]:
    """``planned`` without the flags (and their values) that the user set."""
    kept: list[str] = []
    keep = True
    for word in planned:
        if word.startswith("--"):
            keep = not words.has(word.partition("=")[0])
        if keep:
            kept.append(word)
    return kept


def take_api_keys(words: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split ``--api-key K [K ...]`` from the arguments.

    Returns:
        The keys, and the other arguments.
    """
    keys: list[str] = []
    rest: list[str] = []
    taking = False
    for word in words:
        name, separator, value = word.partition("=")
        if name.replace("_", "-") == "--api-key":
            # As in argparse, a later --api-key replaces an earlier one.
            keys = [value] if separator else []
            taking = not separator
        elif taking and not word.startswith("-"):
            keys.append(word)
        else:
            taking = False
            rest.append(word)
    return tuple(keys), tuple(rest)
