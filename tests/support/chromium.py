"""A real, headless Chromium for tests: the Debian package, installed or unpacked below build/, and its protocol."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

UNPACKED = Path(__file__).parents[2] / "build" / "chromium"


def chromium_program() -> tuple[str, dict[str, str]]:
    """Path of the program and the environment it needs; unpacks the package and what it lacks, without installing."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found:
        return found, {}
    program = UNPACKED / "usr" / "lib" / "chromium" / "chromium"
    if not program.exists():
        archives = UNPACKED / "archives"
        (archives / "partial").mkdir(parents=True, exist_ok=True)
        download = ["apt-get", "install", "--download-only", "--yes", "--no-install-recommends",
                    "-o", f"Dir::Cache::archives={archives}", "chromium"]  # fmt: skip
        if subprocess.run(download, check=False, capture_output=True).returncode:
            # A machine that has never updated its package lists knows no packages.
            subprocess.run(["apt-get", "update"], check=True, capture_output=True)
            subprocess.run(download, check=True, capture_output=True)
        for package in archives.glob("*.deb"):
            subprocess.run(["dpkg", "-x", str(package), str(UNPACKED)], check=True)
    libraries = [UNPACKED / "usr" / "lib" / "chromium", *{one.parent for one in UNPACKED.rglob("lib*.so*")}]
    return str(program), {"LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries))}


class Page:
    """A tab. ``console`` holds what the page complained of."""

    def __init__(self, address: str) -> None:
        self._socket = connect(address, max_size=64 << 20, open_timeout=30)
        self._numbers = itertools.count(1)
        self.console: list[str] = []
        self.requested: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == number:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.console.append(json.dumps(message["params"]["exceptionDetails"]))
            case "Log.entryAdded" if message["params"]["entry"]["level"] == "error":
                self.console.append(message["params"]["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requested.append(message["params"]["request"]["url"])

    def size(self, width: int, height: int, *, phone: bool = False) -> None:
        """The window, as of a phone or of a desk."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def look(self, *, scheme: str = "light", medium: str = "screen") -> None:
        """What the page's media queries see: ``light`` or ``dark``, ``screen`` or ``print``."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._call("Emulation.setEmulatedMedia", media=medium, features=features)

    def click(self, selector: str) -> None:
        """A mouse click in the middle of an element: what a browser takes for the user's own act."""
        name = json.dumps(selector)
        box = self.ask(
            f"(() => {{ const e = document.querySelector({name}); e.scrollIntoView({{ block: 'center' }});"
            " const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def paste(self) -> str:
        """What the clipboard holds, pasted into a field that is then removed."""
        self.ask("document.body.append(Object.assign(document.createElement('textarea'), {id: 'pasted'}));"
                 " document.getElementById('pasted').focus()")  # fmt: skip
        self._call("Input.dispatchKeyEvent", type="keyDown", key="v", code="KeyV", modifiers=2, commands=["paste"])
        found = str(self.ask("document.getElementById('pasted').value"))
        self.ask("document.getElementById('pasted').remove()")
        return found

    def open(self, url: str) -> None:
        self._call("Page.navigate", url=url)

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        result = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, expression: str, timeout: float = 30.0) -> Any:
        """The value once it is true."""
        deadline = time.monotonic() + timeout
        while not (value := self.ask(expression)):
            assert time.monotonic() < deadline, (expression, self.console)
            time.sleep(0.1)
        return value

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        taken = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(taken["data"]))

    def close(self) -> None:
        self._socket.close()


@contextmanager
def chromium() -> Iterator[Page]:
    """A browser with one tab and a profile of its own."""
    try:
        program, environment = chromium_program()
    except (OSError, subprocess.CalledProcessError) as err:
        pytest.skip(f"no Chromium here, and its Debian package could not be had: {err}")
    with tempfile.TemporaryDirectory(prefix="vqp-chromium-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic",
             "--remote-debugging-port=0", f"--user-data-dir={profile}",
             "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "HOME": profile, **environment},
        )  # fmt: skip
        try:
            page = Page(_address(process, Path(profile)))
            try:
                yield page
            finally:
                page.close()
        finally:
            process.terminate()
            process.wait()


def _address(process: subprocess.Popen[bytes], profile: Path) -> str:
    """Where the tab's protocol is served: the browser writes its port into its profile."""
    import httpx

    port_file = profile / "DevToolsActivePort"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, f"chromium ended with {process.returncode}"
        if port_file.exists() and port_file.read_text().strip():
            tabs = httpx.get(f"http://127.0.0.1:{port_file.read_text().split()[0]}/json/list").json()
            pages = [one["webSocketDebuggerUrl"] for one in tabs if one["type"] == "page"]
            if pages:
                return str(pages[0])
        time.sleep(0.05)
    raise AssertionError("chromium did not start")
