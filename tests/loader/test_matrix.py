"""One matrix from checkpoint tensors to a rank's pieces, in every way in which vLLM hands the tensors over."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.scheme import ActivationScheme, Int
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.formats import get_format
from vllm_quant_plugin.formats.compressed_tensors import INT_QUANTIZED
from vllm_quant_plugin.loader.matrix import MatrixLoader
from vllm_quant_plugin.loader.part import Part
from vllm_quant_plugin.loader.shards import ShardPlan, plan_experts
from vllm_quant_plugin.loader.static_range import StaticRange
from vllm_quant_plugin.rtn import quantize
from vllm_quant_plugin.schemes import StoredScheme

SCHEME = StoredScheme(Int(8), -1, storage=INT_QUANTIZED)
ROWS, K = (8, 4, 4), 16


def plan(*ids: Any, rank: int = 0, size: int = 1) -> ShardPlan:
    parts = [Part(i, n, n // size * rank, n // size * (rank + 1)) for i, n in zip(ids, ROWS, strict=False)]
    return ShardPlan(tuple(parts), K, 0, K)


def load(plan: ShardPlan, tensors: dict[Any, dict[str, torch.Tensor]]) -> torch.Tensor:
    """float32: what comes out when ``tensors`` arrive by shard id, and nothing after them is waited for."""
    found: list[CanonicalWeight] = []
    loader = MatrixLoader("layer", SCHEME, plan, lambda pieces, static: found.extend(pieces))
    for shard_id, leaves in tensors.items():
        for leaf, tensor in leaves.items():
            loader.put(shard_id, leaf, tensor)
    loader.finish()
    loader.finish()
    assert len(found) == 1
    return found[0].dequantize()


def matrix(rows: int, seed: int = 0) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Tensors of a (rows, K) module, and the weight that they mean."""
    weight = quantize(torch.randn(rows, K, generator=torch.Generator().manual_seed(seed)), SCHEME)
    return get_format(SCHEME).pack(weight, SCHEME), weight.dequantize()


@pytest.mark.parametrize(("rank", "size"), [(0, 1), (1, 2)])
def test_parts_whole_or_some_of_them_at_once(rank: int, size: int) -> None:
    tensors, weight = matrix(sum(ROWS))
    split = {leaf: tensor.split(ROWS) for leaf, tensor in tensors.items()}
    apart = {i: {leaf: parts[i] for leaf, parts in split.items()} for i in (2, 0, 1)}
    two = {leaf: torch.cat(parts[1:]) for leaf, parts in split.items()}
    expected = torch.cat([part.chunk(size)[rank] for part in weight.split(ROWS)])
    layout = plan(0, 1, 2, rank=rank, size=size)
    for arrived in (apart, {None: tensors}, {(1, 2): two, 0: apart[0]}):
        assert torch.equal(load(layout, arrived), expected)


def test_a_merged_layer_of_one_part_arrives_without_a_shard_id() -> None:
    """Qwen3-Next's in_proj_qkvz."""
    tensors, weight = matrix(ROWS[0])
    assert torch.equal(load(plan(0), {None: tensors}), weight)


def test_converts_with_the_last_tensor_and_ignores_later_ones() -> None:
    tensors, _ = matrix(ROWS[0])
    scheme = StoredScheme(
        Int(8), -1, activation=ActivationScheme(Int(8), "tensor", dynamic=False), storage=INT_QUANTIZED
    )
    tensors |= {"input_scale": torch.tensor(0.5), "input_zero_point": torch.tensor(-3, dtype=torch.int8)}
    calls: list[StaticRange] = []
    loader = MatrixLoader("layer", scheme, plan(None), lambda pieces, static: calls.append(static))
    for i, (leaf, tensor) in enumerate(tensors.items()):
        assert not calls
        loader.put(None, leaf, tensor)
        assert len(calls) == int(i == len(tensors) - 1)
    loader.put(None, "weight", tensors["weight"])
    assert {name: float(value) for name, value in calls[0].items()} == {"low": -62.5, "high": 65.0, "scale": 0.5}


def test_experts_split_rows_of_gate_and_up_and_columns_of_down() -> None:
    plans = plan_experts(16, 8, 1, 2, gated=True)
    assert [(p.shard_id, p.start, p.stop) for p in plans["w13"].parts] == [("w1", 4, 8), ("w3", 4, 8)]
    assert (plans["w13"].rows, plans["w13"].splits_columns) == (16, False)
    assert (plans["w2"].rows, plans["w2"].column_start, plans["w2"].column_stop) == (16, 4, 8)
    assert [p.shard_id for p in plan_experts(16, 8, 0, 1, gated=False)["w13"].parts] == ["w1"]


def test_parts_that_the_layer_does_not_have_or_gets_twice() -> None:
    matrix = MatrixLoader("qkv", SCHEME, plan("q", "k"), lambda pieces, static: None)
    with pytest.raises(CheckpointError, match=r"qkv.weight was loaded as part 'index_q'"):
        matrix.put("index_q", "weight", torch.zeros(8, K))
    matrix.put("q", "weight", torch.zeros(8, K))
    matrix.put(None, "weight", torch.zeros(12, K))
    with pytest.raises(CheckpointError, match="both whole and in parts"):
        matrix.finish()
