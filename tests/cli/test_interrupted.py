"""A signal ends a command with one line that says what is kept, and leaves nothing that nothing can go on from."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = [sys.executable, "-m", "vllm_quant_plugin"]
BUNDLED = Path(__file__).parents[2] / "vllm_quant_plugin/data/stdlib-llama"


def _heed_ctrl_c() -> None:
    """Background jobs of a script, which these tests may be, ignore SIGINT and pass that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _run(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=_heed_ctrl_c,
    )  # fmt: skip


def _start(*words: str) -> subprocess.Popen[str]:
    return _run(*PROGRAM, *words)


def _wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text((BUNDLED / "heldout-code.txt").read_text("utf-8")[:20_000], "utf-8")
    return path


def test_finished_layers_are_kept_and_the_printed_command_resumes(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "out"
    words = ["quantize", str(BUNDLED), "-m", "int8", "--activations", "static", "--smooth", "none", "--no-eval"]
    words += ["--calibration", str(text), "--calibration-samples", "4", "--seq-len", "128", "-o", str(out)]
    process = _start(*words)
    _wait_for(tmp_path / ".out.resume/state.json", process)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, stderr
    assert stdout == ""
    (line,) = stderr.splitlines()
    assert "kept in" in line
    assert not list(tmp_path.glob(".out.partial-*"))
    command = line.partition("resume with: ")[2]
    assert command.endswith("--resume")
    done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "text.txt"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_before_a_layer_is_finished_nothing_is_left(tmp_path: Path, text: Path, number: signal.Signals) -> None:
    out = tmp_path / "out"
    process = _start("quantize", str(BUNDLED), "-m", "awq", "--calibration", str(text), "-o", str(out))
    while not list(tmp_path.glob(".out.partial-*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(number)
    _, stderr = process.communicate()
    assert process.returncode == 128 + number, stderr
    assert "nothing is kept; start over with: " in stderr
    assert [p.name for p in tmp_path.iterdir()] == ["text.txt"]


def test_an_error_that_a_library_puts_in_the_place_of_the_interruption_is_not_reported() -> None:
    """As safetensors' Rust code does with whatever is raised while it calls torch."""
    program = (
        "import atexit, time\n"
        "from vllm_quant_plugin import cli, interruption as i\n"
        "def build(words):\n"
        "    def command(**more):\n"
        "        atexit.register(print, 'what libraries say at the end')\n"
        "        with i.leaving(lambda: i.Kept('all is kept', 'go on')):\n"
        "            try:\n"
        "                print('ready', flush=True)\n"
        "                time.sleep(600)\n"
        "            except BaseException:\n"
        "                raise ValueError('could not determine the shape') from None\n"
        "    return command\n"
        "cli.build_app = build\n"
        "cli.main(['convert'])\n"
    )
    process = _run(sys.executable, "-c", program)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 143
    assert stdout == ""
    assert stderr == "ended by SIGTERM: all is kept; go on\n"


@pytest.mark.parametrize(("grace", "signals"), [("0.1", 1), ("60", 2)])
def test_who_does_not_end_is_ended(grace: str, signals: int) -> None:
    program = (
        "import sys, time\n"
        "from vllm_quant_plugin import interruption as i\n"
        "i.GRACE = float(sys.argv[1])\n"
        "with i.signals_raise(), i.leaving(lambda: i.Kept('all is kept', 'go on')):\n"
        "    try:\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(600)\n"
        "    except BaseException:\n"
        "        print('caught', flush=True)\n"
        "        time.sleep(600)\n"
    )
    process = _run(sys.executable, "-c", program, grace)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGINT)
    assert process.stdout.readline() == "caught\n"
    for _ in range(signals - 1):
        os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted: all is kept; go on" in stderr
