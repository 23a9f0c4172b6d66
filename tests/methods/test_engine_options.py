"""The methods under vLLM's other ways to run: 16-bit activations, torch.compile, KV-cache scales, beside in-tree."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from tests.support.engines import PROMPTS, ask, engine
from tests.support.matrix import CELLS, Cell
from tests.support.oracle import Oracle, differences, input_ranges, judge
from tests.support.quantized_checkpoints import Written, write_checkpoint
from tests.support.tiny_models import LAYERS, TinyModel, tiny_model
from vllm_quant_plugin.formats import Host

pytestmark = pytest.mark.engine

MODEL = tiny_model("llama")
BY_NAME = {cell.name: cell for cell in CELLS}


def inspect(folder: Path, look: Any, **options: Any) -> Any:
    """What ``look(model)`` returns for the loaded model."""
    with engine(folder, **options) as llm:
        return llm.apply_model(look)[0]


def write(folder: Path, cell: Cell, model: TinyModel) -> Written:
    return write_checkpoint(folder, model, cell.recipe, input_ranges=input_ranges(model, apart=False))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["awq-4bit-g128", "gptq-act-order-4bit-g64"])
def test_half_precision(name: str, dtype: str, tmp_path: Path) -> None:
    """In 16 bits the plugin is no farther from the exact logits than 16-bit noise.

    The noise is measured: the distance of the dequantized model through vLLM, in the same dtype,
    from the exact (float64) logits. The plugin reads its weights unrounded, so its error is of the
    same kind; twice the reference's largest error is allowed, two samples of one distribution.
    """
    written = write(tmp_path, BY_NAME[name], MODEL)
    oracle = Oracle(MODEL, written)
    reference = ask(written.reference, dtype=dtype)
    noise = float(differences(reference, oracle.answer(reference.tokens)).max())
    got = ask(written.folder, dtype=dtype, quantization=BY_NAME[name].method)
    assert float(differences(got, oracle.answer(got.tokens)).max()) <= 2 * noise


HERE = Host.local("cpu")
IN_TREE = [cell for cell in CELLS if not cell.refused and cell.tp == 1 and cell.in_tree_rejects(HERE) is None]


@pytest.mark.parametrize("cell", IN_TREE, ids=lambda cell: cell.name)
def test_tokens_agree_with_in_tree(cell: Cell, tmp_path: Path) -> None:
    """Where in-tree vLLM serves the checkpoint on this CPU, both choose the same tokens.

    Both run in the widest dtype that in-tree takes: bfloat16 for its 4-bit kernels, else float32.
    Two choices may differ where rounding decides them. The plugin's share of that is its largest
    distance from exact logits. In-tree's is of the same kind, but for FP8, whose inputs it rounds
    too: what that does to the exact logits of a position is added there. Where the two most likely
    tokens are farther apart than twice this, the choice must be the same, and this must decide
    enough positions to say something: half, and a quarter with FP8.
    """
    if cell.family == "INT8" and "vnni" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("oneDNN's INT8 sums saturate on a CPU without VNNI, so in-tree is not exact")
    model = tiny_model(cell.architecture)
    written = write(tmp_path, cell, model)
    dtype = "bfloat16" if cell.family in ("AWQ", "GPTQ") else "float32"
    ours = ask(written.folder, dtype=dtype, quantization=cell.method)
    theirs = ask(written.folder, dtype=dtype)
    exact = Oracle(model, written).answer(ours.tokens)
    noise = differences(ours, exact).max()
    rounded = Oracle(model, written, fp8=cell.family == "FP8").answer(ours.tokens)
    compared = decided = 0
    for i, tokens in enumerate(ours.tokens):
        same = next(
            (n for n, (a, b) in enumerate(zip(tokens, theirs.tokens[i], strict=True)) if a != b), len(tokens) - 1
        )
        rows = len(PROMPTS[i]) + same
        mine, other = ours.logits[i][:rows], theirs.logits[i][:rows]
        allowed = noise + (rounded.logits[i] - exact.logits[i]).abs().amax(dim=-1)[:rows]
        top = mine.topk(2).values
        clear = (top[:, 0] - top[:, 1]) > 2 * allowed
        assert torch.equal(mine.argmax(dim=-1)[clear], other.argmax(dim=-1)[clear])
        compared += rows
        decided += int(clear.sum())
    assert decided >= compared / (4 if cell.family == "FP8" else 2)


@pytest.mark.parametrize("name", ["fp8-ct-channel", "fp8-kv-scales"])
def test_in_tree_differs_by_its_rounding_only(name: str, tmp_path: Path) -> None:
    """In-tree FP8 is the same model with its inputs rounded as well, to the last float32 digit at most positions."""
    written = write(tmp_path, BY_NAME[name], MODEL)
    theirs = ask(written.folder)
    expected = Oracle(MODEL, written, fp8=True).answer(theirs.tokens)
    verdict = judge(theirs, expected)
    assert verdict.clean >= 0.75
    assert verdict.same_choice


def test_under_torch_compile(tmp_path: Path) -> None:
    """Compiled by Inductor, the operators give the same logits as eager ones, within float32 noise.

    The cell has several segments in a fused layer, gathers and explicit zero points.
    """
    cell = BY_NAME["gptq-act-order-apart"]
    written = write(tmp_path, cell, MODEL)
    got = ask(written.folder, quantization=cell.method, enforce_eager=False)
    verdict = judge(got, Oracle(MODEL, written).answer(got.tokens))
    assert verdict.clean == 1
    assert verdict.same_choice


def test_kv_cache_scales_reach_the_attention_layers(tmp_path: Path) -> None:
    """Read, and the cache is FP8 without a flag, as in-tree does with such a checkpoint."""
    cell = BY_NAME["fp8-kv-scales"]
    written = write(tmp_path, cell, MODEL)

    def scales(model: torch.nn.Module) -> list[tuple[float, float, str]]:
        found = [m for m in model.modules() if hasattr(m, "_k_scale_float")]
        return [(m._k_scale_float, m._v_scale_float, m.kv_cache_dtype) for m in found]

    assert cell.recipe.kv_scales is not None
    assert inspect(written.folder, scales, quantization="vqp_fp8") == [(*cell.recipe.kv_scales, "fp8")] * LAYERS


@pytest.mark.parametrize("name", ["int8-w8a16", "fp8-ct-channel", "gptq-act-order-4bit-g64"])
def test_loading_gives_vllm_nothing_to_warn_of(name: str, tmp_path: Path) -> None:
    """vLLM says a line for each tensor whose dtype it did not expect: hundreds with a large model."""
    cell = BY_NAME[name]
    with mock.patch("vllm.model_executor.models.utils.logger.warning") as warning:
        inspect(write(tmp_path, cell, MODEL).folder, lambda model: None, quantization=cell.method)
    assert not warning.mock_calls


def test_loaded_weights_are_small(tmp_path: Path) -> None:
    """A 4-bit layer holds its codes and scales, and nothing of the checkpoint's tensors besides."""
    written = write(tmp_path, BY_NAME["awq-4bit-g128"], MODEL)

    def sizes(model: torch.nn.Module) -> dict[str, int]:
        layer = model.model.layers[0].mlp.down_proj
        assert not hasattr(layer, "qweight")
        return {name: parameter.nbytes for name, parameter in layer.named_parameters()}

    found = inspect(written.folder, sizes, quantization="vqp_awq")
    n, k = MODEL.tensors["model.layers.0.mlp.down_proj.weight"].shape
    assert found["weight_packed"] == n * k // 2
    assert sum(found.values()) <= n * k // 2 + 3 * 4 * n * (k // 128)
