"""What is wrong for certain is refused before vLLM is imported, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vllm_quant_plugin.errors import CheckpointError, UsageError
from vllm_quant_serve.flags import parse_args
from vllm_quant_serve.preflight import check

NONE = "/no/such/file"


def folder(path: Path, **files: str) -> str:
    path.mkdir(exist_ok=True)
    names = {name.replace("__", "."): text for name, text in files.items()}
    for name, text in {"config.json": "{}", "model.safetensors": "", **names}.items():
        (path / name).write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--hf-overrides", "{bad"], "--hf-overrides '{bad' is no JSON object"),
        (["--hf-overrides=[1]"], "it is no object"),
        (["--ssl-keyfile", NONE], f"--ssl-keyfile {NONE}"),
        (["--ssl-ca-certs", NONE], f"--ssl-ca-certs {NONE}"),
        (["--chat-template", NONE], f"--chat-template {NONE}"),
        (["--tokenizer", NONE], f"--tokenizer {NONE}"),
    ],
)
def test_flags_that_are_refused(words: list[str], says: str) -> None:
    with pytest.raises(UsageError) as refused:
        check(parse_args(["org/name", *words]))
    assert says in refused.value.message
    assert refused.value.hint


def test_flags_that_pass(tmp_path: Path) -> None:
    template = tmp_path / "a.jinja"
    template.write_text("x")
    config = tmp_path / "config.yaml"
    config.write_text("hf-overrides:\n  rope_theta: 1\n")
    for words in (
        ["--hf-overrides", '{"a": 1}'], ["--hf-overrides.a", "1"], ["--config", str(config)],
        ["--chat-template", "{{ x }}"], ["--chat-template", str(template)], ["--tokenizer", "org/name"],
    ):  # fmt: skip
        check(parse_args(["org/name", *words]))


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "no tokenizer"),
        ({"tokenizer_config__json": json.dumps({"tokenizer_class": "LlamaTokenizer"})}, "no tokenizer"),
        ({"tokenizer__json": "{"}, "tokenizer.json: not readable as JSON"),
        ({"tokenizer__json": "{}", "tokenizer_config__json": "[]"}, "tokenizer_config.json: expected a JSON object"),
    ],
)
def test_a_folder_without_a_readable_tokenizer(tmp_path: Path, files: dict[str, str], says: str) -> None:
    model = folder(tmp_path / "m", **files)
    with pytest.raises(CheckpointError, match=says):
        check(parse_args([model]))
    for words in (["--tokenizer", "org/name"], ["--skip-tokenizer-init"], ["--tokenizer-mode", "mistral"]):
        check(parse_args([model, *words]))


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer__json": "{}"}, {"tokenizer__model": ""}, {"qwen__tiktoken": ""}, {"tekken__json": "{}"},
        {"vocab__txt": ""}, {"tokenization_own__py": ""},
        {"tokenizer_config__json": json.dumps({"tokenizer_class": "ByT5Tokenizer"})},
        {"tokenizer_config__json": json.dumps({"auto_map": {"AutoTokenizer": ["org/other--x.Y", None]}})},
    ],
)  # fmt: skip
def test_every_kind_of_tokenizer_passes(tmp_path: Path, files: dict[str, str]) -> None:
    check(parse_args([folder(tmp_path / "m", **files)]))


def test_a_folder_without_weights(tmp_path: Path) -> None:
    model = folder(tmp_path / "m", tokenizer__json="{}")
    (tmp_path / "m/model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        check(parse_args([model]))
    check(parse_args([model, "--load-format", "dummy"]))
    (tmp_path / "m/model.gguf").touch()
    check(parse_args([model]))
