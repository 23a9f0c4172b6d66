"""Reading the user's words: what vLLM's parser would read, and nothing lost on the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_quant_plugin.errors import UsageError
from vllm_quant_serve.flags import parse_args
from vllm_quant_serve.launch import LOOPBACK, build_launch, drop_user_set, endpoint_of, take_api_keys
from vllm_quant_serve.plan.options import DeviceOptions, GoalOptions
from vllm_quant_serve.planning import plan_request


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--max-model-len", "512"], 512),
        (["--max-model-len=512"], 512),
        (["--max_model_len", "512"], 512),
        (["--max_model_len=4k"], 4000),
        (["--max-model-len", "4K"], 4096),
        (["--max-model-l", "512"], 512),
        (["--max-model-len", "auto"], None),
        (["--max-model-len", "-1"], None),
        (["--max-model-len", "512", "--max-model-len", "1024"], 1024),
        (["--port", "8000"], None),
    ],
)
def test_integer_in_every_spelling(words: list[str], expected: int | None) -> None:
    assert parse_args(["m", *words]).integer("--max-model-len") == expected


@pytest.mark.parametrize(
    ("words", "option", "expected"),
    [
        (["-tp", "2"], "--tensor-parallel-size", "2"),
        (["-tp=2"], "--tensor-parallel-size", "2"),
        (["-q", "vqp_awq"], "--quantization", "vqp_awq"),
        (["--quantization-config", "{}"], "--quantization", None),
        (["--data-parallel-size-local", "2"], "--data-parallel-size", None),
        (["--host", "0.0.0.0"], "--host", "0.0.0.0"),
        (["--hf-overrides", '{"max_model_len": 3}'], "--max-model-len", None),
    ],
)
def test_text(words: list[str], option: str, expected: str | None) -> None:
    assert parse_args(["m", *words]).text(option) == expected


def test_switches() -> None:
    words = parse_args(["m", "--enforce-eager", "--enable_expert_parallel", "--no-enable-expert-parallel"])
    assert words.switch("--enforce-eager")
    assert not words.switch("--enable-expert-parallel")
    assert words.has("--enable-expert-parallel")


def test_the_model_may_come_by_flag_or_config(tmp_path: Path) -> None:
    assert parse_args(["--model", "m", "--port", "1"]).model == "m"
    assert parse_args(["--port", "1", "--model=m"]).words == ("--port", "1")
    config = tmp_path / "c.yaml"
    config.write_text("model: from-file\nmax_model_len: 256\nenforce-eager: true\nenable-prefix-caching: false\n")
    words = parse_args(["--config", str(config)])
    assert words.model == "from-file"
    assert words.integer("--max-model-len") == 256
    assert words.switch("--enforce-eager")
    assert words.has("--enable-prefix-caching")
    assert not words.switch("--enable-prefix-caching")


def test_the_command_line_wins_over_the_config_file(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("port: 1111\n")
    assert parse_args(["m", "--config", str(config), "--port", "2222"]).integer("--port") == 2222


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "80"], "no model"),
        (["m", "--config", "/does/not/exist.yaml"], "exist.yaml"),
        (["m", "--max-model-len", "many"], "many"),
        (["m", "--gpu-memory-utilization", "most"], "most"),
        (["m", "--port", "99999"], "99999"),
    ],
)
def test_bad_words_are_usage_errors(words: list[str], message: str) -> None:
    def read() -> None:
        found = parse_args(words)
        plan_request(found, DeviceOptions(cpu=True), GoalOptions())
        endpoint_of(found)

    with pytest.raises(UsageError, match=message):
        read()


def test_the_users_flags_win_over_the_plan() -> None:
    planned = ["--tensor-parallel-size", "4", "--max-model-len", "8192", "--enforce-eager"]
    assert drop_user_set(planned, parse_args(["m", "-tp", "2"])) == ["--max-model-len", "8192", "--enforce-eager"]
    assert drop_user_set(planned, parse_args(["m", "--max_model_len=1"])) == planned[:2] + planned[4:]
    assert drop_user_set(planned, parse_args(["m", "--no-enforce-eager"])) == planned[:4]


def test_the_plans_variables_reach_the_server_unless_they_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    planned = {"VLLM_PP_LAYER_PARTITION": "20,12", "CUDA_VISIBLE_DEVICES": "0,1"}
    launch = build_launch(parse_args(["m", "--api-key", "k"]), [], planned)
    assert launch.line.startswith("VLLM_PP_LAYER_PARTITION=20,12 vllm serve m ")
    assert launch.environment["VLLM_PP_LAYER_PARTITION"] == "20,12"
    assert "CUDA_VISIBLE_DEVICES" not in launch.environment, "the user's own choice"


def test_loopback_unless_the_user_says_more() -> None:
    assert build_launch(parse_args(["m"]), []).endpoint.host == LOOPBACK
    assert "--host" in build_launch(parse_args(["m"]), []).planned
    exposed = build_launch(parse_args(["m", "--host", "0.0.0.0"]), [])
    assert exposed.endpoint.host == "0.0.0.0"
    assert exposed.endpoint.url == "http://127.0.0.1:8000"
    assert "--host" not in exposed.planned
    assert build_launch(parse_args(["m", "--host", "::"]), []).endpoint.url == "http://[::1]:8000"


def test_without_an_http_server_there_is_no_gate_and_no_probe() -> None:
    for flag in ("--headless", "--grpc"):
        launch = build_launch(parse_args(["m", flag]), [])
        assert launch.headless
        assert "--middleware" not in launch.planned
    assert not build_launch(parse_args(["m"]), []).headless


@pytest.mark.parametrize(
    ("words", "keys", "rest"),
    [
        (["--api-key", "s1", "s2", "--port", "1"], ("s1", "s2"), ("--port", "1")),
        (["--port", "1", "--api_key=s1"], ("s1",), ("--port", "1")),
        (["--api-key", "s1", "--api-key", "s2"], ("s2",), ()),
    ],
)
def test_api_keys_leave_the_command_line(words: list[str], keys: tuple[str, ...], rest: tuple[str, ...]) -> None:
    assert take_api_keys(words) == (keys, rest)
    launch = build_launch(parse_args(["m", *words]), [])
    assert launch.probe_key == keys[0]
    for shown in (launch.line, *launch.argv):
        assert not any(key in shown for key in keys)
    assert keys[0] in next(iter(launch.environment.values()))
