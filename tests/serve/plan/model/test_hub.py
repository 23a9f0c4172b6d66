"""Hub models over HTTP on loopback: only configuration and headers travel, never weights."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.serve.plan.conftest import load_config, write_sparse_safetensors
from vllm_quant_plugin.architecture.families import describe
from vllm_quant_serve.plan.api import PlanRequest, make_plan

ROOT = Path(__file__).parents[4]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "org/small"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


class Hub(BaseHTTPRequestHandler):
    """The few routes of the hub that a plan needs; files come from ``folder``, and every request is noted."""

    folder: Path
    broken: str
    asked: list[tuple[str, str, int]]

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _json(self, document: object, body: bool) -> None:
        raw = json.dumps(document).encode()
        self._send(200, raw if body else b"", {"Content-Type": "application/json", "Content-Length": str(len(raw))})

    def _send(self, status: int, raw: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        files = sorted(p for p in self.folder.iterdir())
        if path.startswith(f"/api/models/{NAME}/tree/"):
            found = [{"type": "file", "path": p.name, "size": p.stat().st_size, "oid": _digest(p)} for p in files]
            self._json(found, body)
        elif path.startswith(f"/api/models/{NAME}"):
            self._json({"id": NAME, "sha": COMMIT, "siblings": [{"rfilename": p.name} for p in files]}, body)
        elif path.startswith(f"/{NAME}/resolve/"):
            self._file(self.folder / path.rpartition("/")[2], body)
        else:
            self._send(404, b"", {"Content-Length": "0"})

    def _file(self, path: Path, body: bool) -> None:
        if not path.exists():
            self._send(404, b"", {"Content-Length": "0", "X-Error-Code": "EntryNotFound"})
            return
        asked = self.headers.get("range")
        if body and self.broken and path.name == self.broken:
            self.connection.close()
            return
        start, end = 0, path.stat().st_size - 1
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last), end)
        self.asked.append((path.name, self.command, end - start + 1))
        headers = {"Content-Length": str(end - start + 1), "ETag": f'"{_digest(path)}"', "X-Repo-Commit": COMMIT}
        raw = b""
        if body:
            with path.open("rb") as file:
                file.seek(start)
                raw = file.read(end - start + 1)
        self._send(206 if asked else 200, raw, headers)


def _digest(path: Path) -> str:
    return hashlib.sha1(path.name.encode()).hexdigest()


@pytest.fixture
def hub(tmp_path):
    """A hub with one sharded model of 2.5 GB (as holes), and a way to run a plan against it."""
    folder = tmp_path / "repository"
    folder.mkdir()
    config = load_config("llama-3.2-1b")
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {p.name: ("BF16", p.shape) for p in describe(config).parameters()}
    names = list(tensors)
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    for shard, half in zip(SHARDS, halves, strict=True):
        write_sparse_safetensors(folder / shard, {name: tensors[name] for name in half})
    weight_map = {name: shard for shard, half in zip(SHARDS, halves, strict=True) for name in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    handler = type("Handler", (Hub,), {"folder": folder, "asked": [], "broken": ""})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    def plan(*arguments: str) -> subprocess.CompletedProcess[str]:
        paths = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "serve"), os.environ.get("PYTHONPATH", "")]
        env = {
            **os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p), "HF_HUB_OFFLINE": "0",
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}", "HF_HOME": str(tmp_path / "cache"),
            "HF_HUB_CACHE": str(tmp_path / "cache" / "hub"),  # a process that imported vLLM may have set it
            "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1",
        }  # fmt: skip
        command = [sys.executable, "-m", "vllm_quant_plugin", "plan", NAME, "--gpu", "l4", "--max-model-len", "2048"]
        return subprocess.run([*command, *arguments], capture_output=True, text=True, env=env, timeout=120, check=False)

    plan.handler, plan.folder = handler, folder
    yield plan
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_sharded_model_is_planned_from_ranges_of_its_headers(hub, tmp_path):
    done = hub("--json")
    assert done.returncode == 0, done.stderr
    remote = json.loads(done.stdout)
    local = make_plan(PlanRequest(str(hub.folder), gpu=("l4",), max_model_len=2048))
    assert remote["weight_bytes_per_rank"] == local.weight_bytes_per_rank
    assert "headers read from the Hub" in remote["notes"]
    sent = [size for name, verb, size in hub.handler.asked if verb == "GET" and name in SHARDS]
    assert len(sent) == len(SHARDS)
    assert all(size <= 100_001 for size in sent)
    held = [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in held) < 1 << 20
    assert not any(p.suffix == ".safetensors" for p in held)


def test_headers_that_fail_leave_the_config(hub):
    hub.handler.broken = SHARDS[1]
    done = hub("--json")
    assert done.returncode == 0, done.stderr
    assert any("the Hub is unreachable" in note for note in json.loads(done.stdout)["notes"])


def test_a_damaged_header_is_one_line(hub):
    (hub.folder / SHARDS[0]).write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00no json at all..")
    done = hub()
    assert done.returncode == 6
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_an_unknown_id_is_one_line(hub):
    hub.folder.joinpath("config.json").unlink()
    done = hub()
    assert done.returncode == 6
    assert "has no config.json" in done.stderr
