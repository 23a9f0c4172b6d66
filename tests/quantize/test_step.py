"""A layer's progress while it is being solved."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from vllm_quant_plugin.quantize.api import make_recipe, quantize_model
from vllm_quant_plugin.quantize.step import Step


def test_parts_count_towards_the_whole() -> None:
    seen: list[float] = []
    first, second = Step(seen.append).split((1, 3))
    first.at(0.5)
    second.at(0.0)
    second.split((1, 1))[1].at(1.0)
    assert seen == pytest.approx([0.125, 0.25, 1.0])


@pytest.mark.parametrize(
    ("method", "options"), [("gptq", {}), ("awq", {}), ("int8", {"activations": "static", "smooth": "search"})]
)
def test_the_bar_moves_within_a_layer(
    small_model: Path, tmp_path: Path, short_text: str, method: str, options: dict
) -> None:
    seen: list[tuple[str, float, float]] = []
    recipe = make_recipe(method, calibration=short_text, samples=4, seq_len=32, **options)
    quantize_model(small_model, tmp_path / "out", recipe, progress=lambda *step: seen.append(step))
    done = [at for _, at, total in seen if total == 2]
    assert done == sorted(done)
    assert done[-1] == 2
    for layer in (0, 1):
        within = sorted({at for at in done if layer < at < layer + 1})
        assert len(within) >= 20
        # No stretch of it is silent, whatever it is: measuring, searching, rounding, the pass to the next layer.
        assert max(b - a for a, b in itertools.pairwise([layer, *within, layer + 1])) < 0.3
