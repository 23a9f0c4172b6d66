"""Environments are made beside their place and renamed; what fails leaves the old one and one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from vllm_quant_plugin.backends import store
from vllm_quant_plugin.backends.command import offer_backend
from vllm_quant_plugin.cli import main
from vllm_quant_plugin.errors import BackendError

# Writes down what it is asked, makes a python that imports whatever it is told to, fails on demand.
UV = """#!/bin/sh
echo "$UV_FIND_LINKS|$*" >> "$LOG"
case "$1" in
  --version) echo "uv 0.0" ;;
  venv) for last; do :; done; mkdir -p "$last/bin"
        printf '#!/bin/sh\\necho VERSION 9.9\\n' > "$last/bin/python"; chmod +x "$last/bin/python" ;;
  pip) [ -z "$BROKEN" ] || { echo "error: no wheel for torch" >&2; exit 1; } ;;
esac
"""


@pytest.fixture
def asked(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A uv that makes nothing up; returns the file in which it keeps what it was asked."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "uv").write_text(UV)
    (tools / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("LOG", str(tmp_path / "asked"))
    monkeypatch.delenv("UV_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels /more")
    monkeypatch.setattr(store, "has_nvidia_driver", lambda: False)
    return tmp_path / "asked"


def test_install_list_remove(home: Path, asked: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for words in (["install", "llmcompressor"], ["list"]):
        with pytest.raises(SystemExit) as caught:
            main(["backends", *words])
        assert caught.value.code == 0
        assert f"llmcompressor: 9.9 in {home}/llmcompressor" in capfd.readouterr().out
    assert [p.name for p in home.iterdir()] == ["llmcompressor"]
    lines = asked.read_text().splitlines()
    install = next(line for line in lines if "|pip install" in line)
    assert install.startswith("/wheels,/more|")
    assert install.endswith("--no-deps --compile-bytecode -r " + str(store.BACKENDS["llmcompressor"].lock(cuda=False)))
    assert "+cpu" in store.BACKENDS["llmcompressor"].lock(cuda=False).read_text()
    assert "+cpu" not in store.BACKENDS["llmcompressor"].lock(cuda=True).read_text()
    with pytest.raises(SystemExit):
        main(["backends", "remove", "llmcompressor", "--json"])
    assert json.loads(capfd.readouterr().out)["backends"][0]["version"] is None
    assert not list(home.iterdir())


def test_a_failure_is_one_line_and_keeps_what_was_there(
    home: Path, asked: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    store.install_backend("llmcompressor")
    monkeypatch.setenv("BROKEN", "1")
    with pytest.raises(SystemExit) as caught:
        main(["backends", "install", "llmcompressor"])
    error = capfd.readouterr().err
    assert caught.value.code == 7
    assert "no wheel for torch" in error
    assert error.count("\n") == 1
    # PyTorch's own page is tried where the index has no "+cpu" build.
    assert any(store.TORCH_CPU_LINKS in line for line in asked.read_text().splitlines())
    assert [p.name for p in home.iterdir()] == ["llmcompressor"]
    assert store.require_backend("llmcompressor").version == "9.9"


def test_a_lock_that_changed_is_noticed(home: Path, asked: Path) -> None:
    made = store.install_backend("llmcompressor")
    assert not made.outdated
    mark = made.path / store.MARK
    mark.write_text(json.dumps({**json.loads(mark.read_text()), "lock_sha256": "0"}))
    assert store.require_backend("llmcompressor").outdated


def test_without_a_mark_there_is_no_backend(home: Path, asked: Path) -> None:
    """The mark is the last thing written: a folder without it is no environment."""
    (store.install_backend("llmcompressor").path / store.MARK).unlink()
    with pytest.raises(BackendError, match="not installed") as caught:
        store.require_backend("llmcompressor")
    assert "vllm-quant backends install llmcompressor" in caught.value.hint


@pytest.mark.parametrize("words", [["install"], ["install", "nothing"], ["remove", "nothing"]])
def test_names_that_are_none(home: Path, words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["backends", *words])
    assert caught.value.code == 2
    assert "llmcompressor" in capfd.readouterr().err


def test_home_follows_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VQP_BACKENDS_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert store.home() == Path("/cache/vllm-quant-plugin/backends")


@pytest.mark.parametrize("answer", [True, False])
def test_on_a_terminal_it_is_offered(
    home: Path, asked: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], answer: bool
) -> None:
    questions: list[str] = []

    def confirm(text: str, **_: object) -> bool:
        questions.append(text)
        return answer

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", confirm)
    offer_backend("llmcompressor")
    assert len(questions) == 1
    assert str(home) in questions[0]
    assert (store.find_backend("llmcompressor") is not None) == answer
    offer_backend("llmcompressor")
    assert len(questions) == (1 if answer else 2)
