"""Every cell of the support matrix, through vLLM, against its dequantized reference and against in-tree vLLM.

Tolerances: see tests/support/oracle.py, where they are derived.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from tests.support.engines import Answer, ask, ask_engine, engine
from tests.support.matrix import CELLS, Cell
from tests.support.oracle import Oracle, input_ranges, judge
from tests.support.quantized_checkpoints import Written, write_checkpoint
from tests.support.tiny_models import ARCHITECTURES, TinyModel, tiny_model

pytestmark = pytest.mark.engine

SERVED = [cell for cell in CELLS if cell.refused is None and cell.tp == 1]
# vLLM's reload keeps the old LM head when it is tied and the old experts: these get an engine each.
NO_RELOAD = ("llama-tied", "mixtral")


class Bench:
    """Models, checkpoints and the references' answers, each made once."""

    def __init__(self, folder: Path, wanted: list[Cell]) -> None:
        self.folder, self.wanted = folder, wanted
        self._models: dict[str, TinyModel] = {}
        self._ranges: dict[str, dict[str, tuple[float, float]]] = {}
        self._written: dict[str, Written] = {}
        self._references: dict[str, Answer] = {}

    def model(self, architecture: str) -> TinyModel:
        if architecture not in self._models:
            self._models[architecture] = tiny_model(architecture)
            self._ranges[architecture] = input_ranges(self._models[architecture])
        return self._models[architecture]

    def written(self, cell: Cell) -> Written:
        if cell.name not in self._written:
            model = self.model(cell.architecture)
            ranges = self._ranges[cell.architecture]
            folder = self.folder / cell.name
            self._written[cell.name] = write_checkpoint(folder, model, cell.recipe, input_ranges=ranges)
        return self._written[cell.name]

    def reference(self, cell: Cell) -> Answer:
        """vLLM's answer for the dequantized model; one engine serves all references of an architecture."""
        if cell.name not in self._references:
            if cell not in self.wanted:
                self.wanted.append(cell)
            if cell.architecture in NO_RELOAD:
                self._references[cell.name] = ask(self.written(cell).reference)
            else:
                self._ask_twins([c for c in self.wanted if c.architecture == cell.architecture])
        return self._references[cell.name]

    def _ask_twins(self, cells: list[Cell]) -> None:
        with engine(self.written(cells[0]).reference) as llm:
            for cell in cells:
                llm.collective_rpc("reload_weights", kwargs={"weights_path": str(self.written(cell).reference)})
                self._references[cell.name] = ask_engine(llm)


@pytest.fixture(scope="module")
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    calls = [getattr(item, "callspec", None) for item in request.session.items]
    names = {call.params["cell"].name for call in calls if call is not None and "cell" in call.params}
    return Bench(tmp_path_factory.mktemp("matrix"), [cell for cell in SERVED if cell.name in names])


def ids(cell: Cell) -> str:
    return cell.name


@pytest.mark.parametrize("cell", SERVED, ids=ids)
def test_equals_dequantized_model(cell: Cell, bench: Bench) -> None:
    """Greedy tokens are the reference's, and every logit of prompt and continuation is within the derived tolerance.

    Weight-only schemes: the reference is the dequantized model through vLLM, both in float32. W8A8 and
    FP8 KV caches: the reference is a float64 model in plain PyTorch that rounds its activations or cache.
    """
    written = bench.written(cell)
    got = ask(written.folder, **cell.engine_options())
    oracle = Oracle(bench.model(cell.architecture), written)
    if oracle.rounds:
        expected = oracle.answer(got.tokens)
        verdict = judge(got, expected)
        assert verdict.clean >= 0.75
        assert verdict.worst <= oracle.flip_bound(expected)
    else:
        reference = bench.reference(cell)
        assert got.tokens == reference.tokens
        verdict = judge(got, reference)
        assert verdict.clean == 1
    assert verdict.same_choice


def test_every_row_has_a_tensor_parallel_or_serial_cell() -> None:
    assert len({cell.name for cell in CELLS}) == len(CELLS)
    by_family = defaultdict(set)
    for cell in CELLS:
        by_family[cell.family].add(cell.architecture)
    assert {"AWQ", "GPTQ", "FP8", "INT8", "CT"} == set(by_family)
    for family, architectures in by_family.items():
        assert {"llama", "qwen2", "qwen3", "llama-tied", "mixtral"} <= architectures, family


def test_reference_is_vllm(bench: Bench) -> None:
    """The PyTorch reference and vLLM agree on an unquantized model of every architecture, in float32 noise."""
    cells = [next(cell for cell in SERVED if cell.architecture == name) for name in ARCHITECTURES]
    for cell in cells:
        vllm = bench.reference(cell)
        oracle = Oracle(bench.model(cell.architecture), bench.written(cell))
        oracle.rounds = False
        expected = oracle.answer(vllm.tokens)
        verdict = judge(vllm, expected)
        assert verdict.clean == 1
        assert verdict.same_choice
