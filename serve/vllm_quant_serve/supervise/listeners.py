"""Who listens at an address, by the kernel's tables: a server that answers need not be the one that was started."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable

from vllm_quant_serve.launch import Endpoint

_LISTEN = "0A"
# Of net/unix's flags (__SO_ACCEPTCON): accepted connections carry the path of their listener.
_ACCEPTS = 0x10000


def listening_inodes(endpoint: Endpoint) -> set[int]:
    """The sockets that accept connections to the endpoint (proc(5): net/tcp, net/tcp6, net/unix)."""
    if endpoint.uds:
        path = os.path.abspath(endpoint.uds)
        listening = (row for row in _rows("/proc/net/unix") if len(row) > 7 and int(row[3], 16) & _ACCEPTS)
        return {int(row[6]) for row in listening if os.path.abspath(row[7]) == path}
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for row in _rows(table):
            address, _, port = row[1].partition(":")
            if row[3] == _LISTEN and int(port, 16) == endpoint.port and _reaches(address, endpoint.host):
                found.add(int(row[9]))
    return found


def _rows(table: str) -> list[list[str]]:
    try:
        with open(table, encoding="utf-8", errors="replace") as file:
            return [line.split() for line in file][1:]
    except FileNotFoundError:  # a kernel without IPv6
        return []


def _reaches(address: str, host: str) -> bool:
    """Whether a socket bound to ``address``, as the kernel writes it, gets connections to ``host``."""
    if not int(address, 16) or host in ("", "0.0.0.0", "::"):
        return True
    words = [bytes.fromhex(address[index : index + 8])[::-1] for index in range(0, len(address), 8)]
    packed = b"".join(words)
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    try:
        wanted = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return True
    text = socket.inet_ntop(family, packed)
    return text in wanted or text.removeprefix("::ffff:") in wanted


def held_inodes(pids: Iterable[int]) -> set[int]:
    """The sockets that the processes hold open."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    target = os.readlink(f"/proc/{pid}/fd/{name}")
                    if target.startswith("socket:["):
                        found.add(int(target[8:-1]))
    return found


def holder_of(inodes: set[int]) -> str:
    """`` by NAME (pid N)`` for a process that holds one of the sockets, "" when it cannot be seen."""
    for name in os.listdir("/proc"):
        if name.isdigit() and held_inodes([int(name)]) & inodes:
            with contextlib.suppress(OSError), open(f"/proc/{name}/comm", encoding="utf-8") as file:
                return f" by {file.read().strip()} (pid {name})"
    return ""
