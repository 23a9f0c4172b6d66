"""A signal at any stage before the server is started ends the launcher at once, with its children."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import vllm_quant_plugin
from tests.support.supervised import free_port, wait_gone

# The stage of a launch that is slow, and how: in Python, or in a C call that no signal interrupts.
STAGES = {
    "vllm_quant_serve.command.hold_address": "PYTHON",
    "vllm_quant_serve.command.plan_request": "PYTHON",
    "vllm_quant_serve.command.make_plan": "C",
    "vllm_quant_serve.command.check": "CHILD",
    "vllm_quant_serve.command.launch_recorder": "C",
    "vllm_quant_serve.command._bind_admin": "PYTHON",
}
PROGRAM = """
import ctypes, subprocess, sys, time
from importlib import import_module
module, name = {stage!r}.rsplit(".", 1)
def slow(*words, **more):
    print("slow", flush=True)
    kind = {kind!r}
    if kind == "CHILD":
        print(subprocess.Popen(["sleep", "600"]).pid, flush=True)
    if kind == "C":
        # poll(2) restarted for ever, as a library that ignores EINTR does.
        while True:
            ctypes.CDLL(None).sleep(600)
    try:
        time.sleep(600)
    except BaseException:
        time.sleep(600)
import vllm_quant_serve.command as command
setattr(import_module(module), name, slow)
from vllm_quant_plugin.cli import main
main(["serve", {model!r}, "--cpu", "--port", {port!r}])
"""


@pytest.mark.parametrize("stage", STAGES)
def test_a_slow_stage_is_interrupted(stage: str) -> None:
    model = str(Path(vllm_quant_plugin.__file__).parent / "data" / "stdlib-llama")
    source = PROGRAM.format(stage=stage, kind=STAGES[stage], model=model, port=str(free_port()))
    command = [sys.executable, "-c", source]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "slow":
            break
    else:
        raise AssertionError(process.communicate()[1])
    children = []
    if STAGES[stage] == "CHILD":
        children = [psutil.Process(int(process.stdout.readline()))]
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert error.strip().splitlines()[-1] == "SIGTERM before anything was started"
    assert wait_gone(children, 5) == []
