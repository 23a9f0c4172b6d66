"""``LocalServer``, what scripts use: failures of the launcher arrive as the errors they are."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

import pytest

import vllm_quant_plugin
from vllm_quant_plugin.errors import CheckpointError, NoFeasiblePlanError, StartupError
from vllm_quant_serve.local_server import LocalServer, free_port

BUNDLED = str(Path(vllm_quant_plugin.__file__).parent / "data" / "stdlib-llama")


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log of a server that failed is kept; here it goes with the test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def start(model: str, *flags: str, port: int | None = None) -> None:
    with LocalServer(model, ["--cpu", *flags], port=port):
        raise AssertionError("it must not start")


def test_failures_keep_their_kind() -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        start("/no/such/folder")
    with pytest.raises(NoFeasiblePlanError):
        start(BUNDLED, "--kv-cache-memory-bytes", "100T")


def test_a_port_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StartupError, match=str(port)):
            start(BUNDLED, port=port)
        assert free_port() != port
