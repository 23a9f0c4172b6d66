"""What the server prints while it starts is in a file that a failed start names; from ready on it is on stderr."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path

import httpx

from tests.support.supervised import HERE, Supervised, free_port

QUIET = {"quiet": True}


def logs(running: Supervised) -> list[Path]:
    return list(Path(running.scratch).glob("vllm-quant-*.log"))


def test_a_start_is_quiet_and_its_log_is_deleted() -> None:
    with Supervised(options=QUIET) as running:
        running.wait_event("ready")
        assert logs(running) == []
        assert running.logged() == ""
        httpx.get(f"{running.url}/health?say=later-words")
        running.send()
        assert running.wait_exit() == 0
        assert "later-words" in running.logged()


def test_a_failed_start_names_its_log() -> None:
    with Supervised("--fake-fail", "RuntimeError: something is wrong", options=QUIET) as running:
        assert running.wait_exit() == 4
        (line,) = running.logged().splitlines()
        (log,) = logs(running)
        assert line.endswith(f"what it printed is in {log}")
        assert running.error()["log"] == str(log)
        assert "something is wrong" in log.read_text()


def test_what_was_refused_leaves_no_log() -> None:
    with Supervised("--fake-fail", "vllm: error: unrecognized arguments: --foo", options=QUIET) as running:
        assert running.wait_exit() == 2
        assert logs(running) == []
    with Supervised("--fake-load", "60", options=QUIET) as running:
        running.wait_event("started")
        running.send()
        assert running.wait_exit() == 128 + signal.SIGTERM
        assert logs(running) == []


def test_a_terminal_shows_that_it_goes_on() -> None:
    controller, terminal = pty.openpty()
    words = ['{"quiet": true, "as_json": false}', "fake/model", "--port", str(free_port()), "--fake-load", "2"]
    process = subprocess.Popen([sys.executable, str(HERE / "run_supervised.py"), *words],
                               stdin=subprocess.DEVNULL, stdout=terminal, stderr=terminal)  # fmt: skip
    os.close(terminal)
    seen, stopped = b"", False
    while select.select([controller], [], [], 60)[0]:
        try:
            seen += os.read(controller, 65536)
        except OSError:  # closed
            break
        if b"ready after" in seen and not stopped:
            process.send_signal(signal.SIGTERM)
            stopped = True
    assert process.wait(30) == 0
    text = seen.decode()
    assert "starting vLLM" in text
    assert "elapsed" in text
    assert "fake engine" in text, "the last line of the log"
    assert "stopped" in text.splitlines()[-1]
    os.close(controller)
