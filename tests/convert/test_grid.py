"""A few cells of the conversion grid, in an engine. The whole: ``make test-grid``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.grid_sources import source_named
from tests.support.run_grid import convert, judged, with_plugin
from vllm_quant_plugin.formats import Host


@pytest.mark.engine
@pytest.mark.parametrize(
    ("name", "to"),
    [
        ("gptq-act-order-4bit-g64", "compressed-tensors"),
        ("awq-4bit-g64-qwen2", "gptq"),
        ("gptq-lm-head", "compressed-tensors"),
    ],
)
def test_what_was_written_is_loaded(name: str, to: str, tmp_path: Path) -> None:
    made = convert(source_named(name).make(tmp_path / "in"), to, tmp_path / "out")
    assert not isinstance(made, str)
    assert with_plugin(made, judged(made.folder, Host.local("cpu")))["result"] == "right"


@pytest.mark.parametrize("to", ["awq", "compressed-tensors"])
def test_an_embedding_that_the_config_cannot_announce(to: str, tmp_path: Path) -> None:
    refused = convert(source_named("gptq-embedding").make(tmp_path / "in"), to, tmp_path / "out")
    assert "embedding" in str(refused)
    assert not (tmp_path / "out").exists()
