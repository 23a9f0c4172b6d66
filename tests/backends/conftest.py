"""A home for backends of the test's own, and a stand-in for llm-compressor in it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.quantize.conftest import short_text, small_model
from vllm_quant_plugin.backends.store import BACKENDS, MARK, _digest

__all__ = ["short_text", "small_model"]
FAKE = Path(__file__).parents[1] / "support" / "fake_llmcompressor.py"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home for backends."""
    folder = tmp_path / "backends"
    monkeypatch.setenv("VQP_BACKENDS_HOME", str(folder))
    return folder


@pytest.fixture
def fake(home: Path) -> Path:
    """The home with an environment whose interpreter is the stand-in."""
    python = home / "llmcompressor" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$@"\n')
    python.chmod(0o755)
    mark = {"version": "0.0.fake", "lock_sha256": _digest(BACKENDS["llmcompressor"].lock(cuda=False))}
    (home / "llmcompressor" / MARK).write_text(json.dumps(mark))
    return home
