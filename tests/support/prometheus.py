"""A real Prometheus for tests: the Debian package, installed or unpacked below build/."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.support.supervised import free_port

UNPACKED = Path(__file__).parents[2] / "build" / "prometheus"


def prometheus_program() -> str:
    """Path of the program; unpacks the Debian package (without installing it) where it is missing."""
    found = shutil.which("prometheus")
    if found:
        return found
    program = UNPACKED / "usr" / "bin" / "prometheus"
    if not program.exists():
        UNPACKED.mkdir(parents=True, exist_ok=True)
        download = ["apt-get", "download", "prometheus"]
        if subprocess.run(download, cwd=UNPACKED, check=False, capture_output=True).returncode:
            # A machine that has never updated its package lists knows no packages.
            subprocess.run(["apt-get", "update"], check=True, capture_output=True)
            subprocess.run(download, cwd=UNPACKED, check=True, capture_output=True)
        for package in UNPACKED.glob("prometheus_*.deb"):
            subprocess.run(["dpkg", "-x", str(package), str(UNPACKED)], check=True)
    return str(program)


class Prometheus:
    """A running Prometheus; ask it with ``query``."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector of a PromQL expression."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=30).json()
        assert answer["status"] == "success", (expression, answer)
        result = answer["data"]["result"]
        assert isinstance(result, list)
        return result

    def wait_for(self, expression: str, timeout: float = 60.0) -> list[dict[str, Any]]:
        """The result once it is not empty."""
        deadline = time.monotonic() + timeout
        while not (result := self.query(expression)) and time.monotonic() < deadline:
            time.sleep(0.5)
        return result


@contextmanager
def prometheus(folder: Path, targets: list[str], rules: Path) -> Iterator[Prometheus]:
    """Scrapes ``targets`` (host:port) every second with ``rules`` loaded."""
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "scrape_configs": [{"job_name": "vllm", "static_configs": [{"targets": targets}]}],
    }
    # JSON is YAML.
    (folder / "prometheus.yml").write_text(json.dumps(config))
    port = free_port()
    with open(folder / "prometheus.log", "wb") as log:
        process = subprocess.Popen(
            [prometheus_program(), f"--config.file={folder / 'prometheus.yml'}",
             f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        one = Prometheus(port)
        for _ in range(240):
            if process.poll() is not None:
                raise AssertionError((folder / "prometheus.log").read_text())
            try:
                if httpx.get(f"{one.url}/-/ready").status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            time.sleep(0.25)
        yield one
    finally:
        process.terminate()
        process.wait()
