"""Layers that load their parts in their own way: none is unknown, each gets the rows that vLLM's loader gives it."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from vllm_quant_plugin import compat_layers as layers
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.loader.own_parts import OWN_PARTS
from vllm_quant_plugin.loader.shards import plan_linear

K, HEAD = 4, 2


def test_every_class_of_the_kind_is_known() -> None:
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent
    plain = {cls.__name__ for cls in layers.PLAIN_LINEAR} | {"LinearBase"}
    found = set()
    for folder in ("model_executor", "models"):
        for path in (root / folder).rglob("*.py"):
            text = path.read_text()
            if "def weight_loader" not in text:
                continue
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ClassDef) and node.name not in plain:
                    linear = any(ast.unparse(base).rpartition(".")[2].endswith("Linear") for base in node.bases)
                    own = {child.name for child in node.body if isinstance(child, ast.FunctionDef)}
                    if linear and own & {"weight_loader", "weight_loader_v2"}:
                        found.add(node.name)
    assert found == set(OWN_PARTS)


def _layer(cls: Any, rank: int, size: int, **values: Any) -> Any:
    """A layer of ``cls`` without its construction, which needs a process group."""
    layer = cls.__new__(cls)
    torch.nn.Module.__init__(layer)
    for name, value in {"tp_rank": rank, "tp_size": size, "prefix": "model.layers.0.proj", **values}.items():
        setattr(layer, name, value)
    return layer


def _minimax(rank: int, size: int) -> Any:
    from vllm.model_executor.layers.linear import MinimaxM3QKVParallelLinearWithIndexer

    heads, kv = 8, 2
    replicas = max(1, size // kv)
    return _layer(
        MinimaxM3QKVParallelLinearWithIndexer, rank, size,
        head_size=HEAD, index_head_size=HEAD, total_num_heads=heads, total_num_kv_heads=kv, total_num_index_heads=kv,
        num_heads=heads // size, num_kv_heads=max(1, kv // size), num_index_heads=max(1, kv // size),
        num_kv_head_replicas=replicas,
    )  # fmt: skip


def _kimi_k3(rank: int, size: int) -> Any:
    from vllm.model_executor.layers.linear import KimiK3MergedQKVGateLinear

    return _layer(KimiK3MergedQKVGateLinear, rank, size, output_sizes=[6 * size, 3 * size, 16])


def _kimi_gdn(rank: int, size: int) -> Any:
    module = pytest.importorskip("vllm.model_executor.layers.mamba.gdn.kimi_gdn_linear_attn")
    cls = module._KimiGDNMergedColumnParallelLinear
    return _layer(cls, rank, size, output_sizes=[8, 8, 5 * size, 16], replicated_shard_id=2)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("make", [_minimax, _kimi_k3, _kimi_gdn])
def test_rows_are_those_of_vllms_own_loader(make: Any, size: int) -> None:
    for rank in range(size):
        layer = make(rank, size)
        plan = plan_linear(layer, K, K, 0)
        stored = {part.shard_id: torch.randn(part.rows, K) for part in plan.parts}
        ours = torch.cat([stored[part.shard_id][part.start : part.stop] for part in plan.parts])
        param = torch.nn.Parameter(torch.full_like(ours, torch.nan), requires_grad=False)
        param.output_dim = 0  # type: ignore[attr-defined]
        for shard_id, tensor in stored.items():
            layer.weight_loader(param, tensor, shard_id)
        assert torch.equal(param, ours)


def test_an_unknown_class_is_refused_by_name() -> None:
    class Interleaved(layers.MergedColumnParallelLinear):
        def weight_loader(self, param: Any, loaded_weight: Any, loaded_shard_id: Any = None) -> None: ...

    class Derived(Interleaved): ...

    class Plain(layers.MergedColumnParallelLinear):
        """Loads as its base does."""

    with pytest.raises(CheckpointError, match=r"proj: Interleaved loads its weights in its own way"):
        plan_linear(_layer(Derived, 0, 2, output_sizes=[4, 4]), K, K, 8)
    assert plan_linear(_layer(Plain, 0, 2, output_sizes=[4, 4]), K, K, 8).rows == 8


def test_mamba_2_groups_on_every_rank_are_refused() -> None:
    """MambaMixer2 with one group builds a plain layer of five parts and replaces the loader of its ``weight`` alone."""
    from vllm.model_executor.layers.linear import ColumnParallelLinear

    layer = _layer(ColumnParallelLinear, 0, 2, prefix="model.layers.0.mixer.in_proj")
    with pytest.raises(CheckpointError, match=r"mixer\.in_proj: a Mamba 2 layer .* 2 ranks"):
        plan_linear(layer, K, K, 16)
    layer = _layer(ColumnParallelLinear, 0, 1, prefix="model.layers.0.mixer.in_proj")
    assert plan_linear(layer, K, K, 16).rows == 16
