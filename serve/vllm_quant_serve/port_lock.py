"""One launcher per address: a lock that is held from before anything is planned until the launcher ends.

vLLM binds its port when it starts and listens when its model is loaded, minutes later. Until then Linux lets another
process bind the same port (both set SO_REUSEADDR), so a test bind finds no loading server. The lock is a Unix socket
in the abstract namespace: it needs no file, is seen exactly where the port is seen (one network namespace), and the
kernel releases it however its holder ends. A second launcher connects to it and is told who the first one is.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading

from vllm_quant_plugin.errors import StartupError

PREFIX = "vqp-serve"
_WILDCARDS = ("0.0.0.0", "::", "")


def lock_names(port: int, address: str) -> tuple[str, str]:
    """The lock of an address, and the prefix of all locks of its port."""
    return f"{PREFIX}/{port}/{'*' if address in _WILDCARDS else address}", f"{PREFIX}/{port}/"


class PortLock:
    """The lock of one address or socket path. ``acquire`` it; it is released when it is closed or the process ends."""

    def __init__(self, sock: socket.socket, about: dict[str, object]) -> None:
        self._socket = sock
        self._about = json.dumps(about).encode()
        self._thread = threading.Thread(target=self._answer, name="port-lock", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(cls, name: str, prefix: str, what: str, about: dict[str, object]) -> PortLock:
        """Take the lock.

        Args:
            name: its name.
            prefix: other locks that begin with it exclude this one where either is a wildcard.
            what: what it protects, for messages, e.g. ``127.0.0.1 port 8000``.
            about: what a second launcher is told.

        Raises:
            StartupError: another launcher holds it, or one that excludes it.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind("\0" + name)
            sock.listen(16)
        except OSError:
            sock.close()
            raise _taken(name, what) from None
        # After the own lock is there: of two launchers that start together, at least one sees the other.
        for other in _others(name, prefix):
            sock.close()
            raise _taken(other, what)
        return cls(sock, about)

    def _answer(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:  # closed
                return
            with connection, contextlib.suppress(OSError):
                connection.sendall(self._about)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        # The kernel keeps the name for as long as a thread waits in accept.
        self._thread.join(5.0)
        self._socket.close()


def _others(name: str, prefix: str) -> list[str]:
    """Locks of the same port that exclude ``name``: all where it is a wildcard, else the wildcard's."""
    if not prefix:
        return []
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as file:
        held = {line.split()[-1] for line in file if f" @{prefix}" in line}
    names = {word[1:] for word in held if word.startswith("@")} - {name}
    return sorted(other for other in names if name.endswith("/*") or other.endswith("/*"))


def _taken(name: str, what: str) -> StartupError:
    """The refusal, which names the holder."""
    pid, about = 0, {}
    with contextlib.suppress(OSError, ValueError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(2.0)
        client.connect("\0" + name)
        # Of the process that listens (unix(7)): true even where that process is too busy to answer.
        pid = int.from_bytes(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], "little")
        received = b""
        while chunk := client.recv(4096):
            received += chunk
        about = json.loads(received)
    model = f", model {about['model']}" if about.get("model") else ""
    if pid == os.getpid():
        return StartupError(f"{what} is held by this process already{model}", "serve one model per port")
    return StartupError(
        f"{what} is held by another vllm-quant serve (pid {pid or 'unknown'}{model})",
        "choose another with --port, or stop that one",
    )
