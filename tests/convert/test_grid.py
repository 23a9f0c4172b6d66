"""The conversion grid's recorded run, and a few of its cells in an engine. The whole: ``make test-grid``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.grid_sources import source_named
from tests.support.matrix import CELLS
from tests.support.run_grid import convert, judged, with_plugin
from vllm_quant_plugin.formats import Host
from vllm_quant_plugin.formats.host import DeviceType

RECORD = Path(__file__).parents[2] / "benchmarks/results/grid.json"


def test_the_verdict_is_what_the_engines_did() -> None:
    """On the host of the recorded run; of cells that need no file. No engine contradicts its verdict."""
    record = json.loads(RECORD.read_text())
    device: DeviceType = record["about"]["device"]
    host = Host(device, frozenset(record["about"]["cpu_flags"]))
    cells, compared = {cell.name: cell for cell in CELLS}, 0
    for row in record["rows"]:
        assert not row["contradiction"], row
        if row["target"] or row["source"] not in cells:
            continue
        verdict = cells[row["source"]].verdict(host)
        said = row["verdict"]
        assert (verdict.server, verdict.method, verdict.in_tree) == (said["server"], said["method"], said["in_tree"])
        compared += 1
    assert compared > 10


@pytest.mark.engine
@pytest.mark.parametrize(("name", "to"), [("gptq-act-order-4bit-g64", "compressed-tensors"), ("ct-3bit-g64", "gptq")])
def test_what_was_written_is_loaded(name: str, to: str, tmp_path: Path) -> None:
    made = convert(source_named(name).make(tmp_path / "in"), to, tmp_path / "out")
    assert not isinstance(made, str)
    assert with_plugin(made, judged(made.folder, Host.local("cpu")))["result"] == "right"


@pytest.mark.parametrize("to", ["awq", "compressed-tensors"])
def test_an_embedding_that_the_config_cannot_announce(to: str, tmp_path: Path) -> None:
    refused = convert(source_named("gptq-embedding").make(tmp_path / "in"), to, tmp_path / "out")
    assert "embedding" in str(refused)
    assert not (tmp_path / "out").exists()
