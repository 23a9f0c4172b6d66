"""``vllm-quant serve`` up to the launch: what it prints, and one line with a documented code for every bad input."""

from __future__ import annotations

import json
import shlex
import shutil
import socket
from pathlib import Path

import pytest

import vllm_quant_plugin
from tests.support.supervised import free_port
from vllm_quant_plugin.cli import main

BUNDLED = Path(vllm_quant_plugin.__file__).parent / "data" / "stdlib-llama"


def leave(*words: str) -> int:
    """The exit code of ``vllm-quant serve``."""
    with pytest.raises(SystemExit) as left:
        main(["serve", *words])
    return int(left.value.code or 0)


def test_dry_run_prints_a_line_that_a_shell_reads_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = tmp_path / "a model"
    shutil.copytree(BUNDLED, model)
    overrides = '{"max_position_embeddings": 512}'
    assert leave(str(model), "--dry-run", "--cpu", "--hf-overrides", overrides, "--max-model-len", "512") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("plan: BF16 LlamaForCausalLM on CPU")
    words = shlex.split(lines[-1])
    assert words[:3] == ["vllm", "serve", str(model)]
    assert words[-4:] == ["--hf-overrides", overrides, "--max-model-len", "512"]
    assert words[words.index("--host") + 1] == "127.0.0.1"


def test_dry_run_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert leave(str(BUNDLED), "--dry-run", "--json", "--cpu", "--port", "8123") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["url"] == "http://127.0.0.1:8123"
    assert document["plan"]["weight_bytes_per_rank"] > 0
    assert shlex.split(document["command"]) == document["argv"]
    for word in document["plan"]["serve_args"]:
        assert word in document["argv"]


def test_the_users_length_is_the_plans_length(capsys: pytest.CaptureFixture[str]) -> None:
    assert leave(str(BUNDLED), "--dry-run", "--json", "--cpu", "--max_model_len=256") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["plan"]["max_model_len"] == 256
    assert "--max-model-len" not in document["argv"]
    assert document["argv"][-1] == "--max_model_len=256"


def test_a_plan_for_other_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert leave(str(BUNDLED), "--dry-run", "--json", "--gpu", "h100") == 0
    assert "H100" in json.loads(capsys.readouterr().out)["plan"]["device"]


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (["/no/such/folder"], 6, "/no/such/folder"),
        (["--port", "8000"], 2, "model"),
        ([str(BUNDLED), "--cpu", "--port", "70000"], 2, "70000"),
        ([str(BUNDLED), "--cpu", "--max-model-len", "long"], 2, "long"),
        ([str(BUNDLED), "--cpu", "--config", "/no/such.yaml"], 2, "/no/such.yaml"),
        ([str(BUNDLED), "--gpu", "no-such-gpu"], 2, "no-such-gpu"),
        ([str(BUNDLED), "--cpu", "--kv-cache-memory-bytes", "100T"], 3, "KV cache"),
        ([str(BUNDLED), "--cpu", "--host", "203.0.113.1"], 4, "203.0.113.1"),
        ([str(BUNDLED), "--cpu", "--host", "no such host"], 4, "no such host"),
        ([str(BUNDLED), "--cpu", "--uds", "/x", "--host", "127.0.0.1"], 2, "--uds"),
        ([str(BUNDLED), "--cpu", "--admin-host", "0.0.0.0"], 2, "VQP_ADMIN_TOKEN"),
    ],
)
def test_bad_input_is_one_line_and_a_code(
    words: list[str], code: int, named: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VQP_ADMIN_TOKEN", raising=False)
    if "--port" not in words:  # others may hold the default port
        words = [*words, "--port", str(free_port())]
    assert leave(*words) == code
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert named in error
    assert len(error.splitlines()) == 1, "one line"


def test_a_port_in_use_names_who_holds_it(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert leave(str(BUNDLED), "--cpu", "--json", "--port", str(port)) == 4
    captured = capsys.readouterr()
    assert f"port {port} is in use" in captured.err
    assert "--port" in captured.err
    error = json.loads(captured.out.splitlines()[-1])["error"]
    assert error["exit_code"] == 4
    assert "pid" in error["message"]


def pickle_only(folder: Path) -> str:
    folder.mkdir()
    shutil.copy(BUNDLED / "config.json", folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    return str(folder)


def test_pickle_weights_are_refused_before_anything_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = pickle_only(tmp_path / "m")
    for words in ([], ["--no-plan"]):
        assert leave(model, "--cpu", "--json", "--port", str(free_port()), *words) == 6
        captured = capsys.readouterr()
        assert "pickle" in captured.err
        assert "started" not in captured.out
    assert leave(model, "--cpu", "--dry-run") == 0, "a plan needs no weights"


def test_objectives_and_typical_requests_are_the_plans(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--prompt-tokens", "100", "--output-tokens", "50", "--price", "2.0", "--slo-ttft", "30"]
    assert leave(str(BUNDLED), "--dry-run", "--json", "--gpu", "h100", *words) == 0
    prediction = json.loads(capsys.readouterr().out)["plan"]["prediction"]
    assert (prediction["prompt_tokens"], prediction["output_tokens"]) == (100, 50)
    assert prediction["cost_per_million"] > 0
    assert prediction["ttft"] <= 30
    assert leave(str(BUNDLED), "--dry-run", "--gpu", "h100", "--slo-tpot", "1e-9") == 3
