"""The entry point: lazy commands, one-line errors, exit codes, JSON errors."""

import json
import subprocess
import sys

import pytest

from vllm_quant_plugin import __version__
from vllm_quant_plugin.cli import COMMANDS, main
from vllm_quant_plugin.errors import CheckpointError, VqpError


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vllm_quant_plugin", *argv], capture_output=True, text=True, check=False
    )


def test_version_and_help_name_every_command() -> None:
    assert run("--version").stdout.strip() == __version__
    shown = run("--help").stdout
    assert all(name in shown for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_without_torch(name: str) -> None:
    code = (
        "import sys; from vllm_quant_plugin.cli import build_app\n"
        f"app = build_app([{name!r}])\n"
        "assert 'torch' not in sys.modules, 'torch imported for help'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_expected_failure_is_one_line_with_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["inspect", "/no/such/model"])
    captured = capsys.readouterr()
    assert stop.value.code == CheckpointError.exit_code
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: /no/such/model")
    assert captured.out == ""


def test_json_failure_is_json_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["inspect", "/no/such/model", "--json"])
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["exit_code"] == CheckpointError.exit_code
    assert "no such folder" in error["message"]
    assert error["hint"]


def test_unknown_command_is_usage() -> None:
    done = run("frobnicate")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_exit_codes_are_distinct() -> None:
    codes = [cls.exit_code for cls in VqpError.__subclasses__()]
    assert len(codes) == len(set(codes))
    assert 0 not in codes


@pytest.mark.parametrize("offline", ["1", ""])
def test_hub_id_out_of_reach(offline: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", offline or "0")
    if not offline:
        # Nothing listens there: the hub cannot be reached, and no name is looked up.
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SystemExit) as stop:
        main(["inspect", "no-such-org/no-such-model"])
    assert stop.value.code == CheckpointError.exit_code
    assert "Traceback" not in capsys.readouterr().err
