"""Experts through the grouped kernels: stacks, vLLM's method around them, and the emulated kernel in its place."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.cuda import emulated
from tests.kernels.weights import random_weight
from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.cuda import ops as cuda_ops
from vllm_quant_kernels.cuda.pack import dequantize_cuda, pack_cuda
from vllm_quant_kernels.cuda.stack import split_rows, stack_cuda
from vllm_quant_kernels.kernel import Device
from vllm_quant_kernels.scheme import Int
from vllm_quant_plugin import compat_layers as layers
from vllm_quant_plugin.formats import get_format
from vllm_quant_plugin.formats.gptq import GPTQ_V2
from vllm_quant_plugin.methods import cuda_experts, kernel
from vllm_quant_plugin.methods.cuda_experts import ExpertStack, run_experts
from vllm_quant_plugin.methods.moe import VqpMoEMethod
from vllm_quant_plugin.schemes import StoredScheme

HIDDEN, INNER, EXPERTS, TOP_K = 96, 80, 5, 2
FORMATS: dict[str, dict[str, Any]] = {
    "int4": {"bits": 4, "group_size": 32, "scale_dtype": torch.float16},
    "int3-zeros": {"bits": 3, "group_size": 16, "zeros": "integer"},
    "int8-channel": {"bits": 8},
    "int4-float-zeros": {"bits": 4, "group_size": 32, "zeros": "floating"},
    "int4-act-order": {"bits": 4, "group_size": 16, "zeros": "integer", "order": "shuffled"},
    "fp8": {"bits": 8, "kind": "fp8_e4m3"},
}


def align(
    topk_ids: torch.Tensor,
    block_size: int,
    num_experts: int,
    expert_map: torch.Tensor | None = None,
    pad_sorted_ids: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """vLLM's ``moe_align_block_size``, of which vLLM has no CPU version: sizes and order by its docstring. Its kernel
    counts every id, so one outside [0, num_experts) would write out of bounds.

    What it leaves unwritten holds a valid pair and expert here, so a kernel that does not stop at the rows in
    use overwrites good rows.
    """
    assert int(topk_ids.min()) >= 0
    assert int(topk_ids.max()) < num_experts
    pairs = topk_ids.numel()
    size = pairs + num_experts * (block_size - 1)
    if pad_sorted_ids:
        size = -(-size // block_size) * block_size
    if pairs < num_experts:
        size = min(pairs * block_size, size)
    rows, experts = [], []
    for e in range(num_experts):
        mine = (topk_ids.flatten() == e).nonzero().flatten().tolist()
        mine += [pairs] * (-len(mine) % block_size)
        rows += mine
        experts += [e] * (len(mine) // block_size)
    used = torch.tensor([len(rows)], dtype=torch.int32)
    sorted_ids = torch.tensor(rows + [0] * (size - len(rows)), dtype=torch.int32)
    tiles = torch.tensor(experts + [0] * (-(-size // block_size) - len(experts)), dtype=torch.int32)
    return sorted_ids, tiles if expert_map is None else expert_map[tiles], used


def layer_of(expert_map: torch.Tensor | None, on_input: bool) -> Any:
    """As much of vLLM's RoutedExperts as the method reads."""
    layer = torch.nn.Module()
    layer.global_num_experts = EXPERTS  # type: ignore[assignment]
    layer.register_buffer("expert_map", expert_map)
    layer.apply_router_weight_on_input = on_input  # type: ignore[assignment]
    layer.activation = layers.MoEActivation.SILU  # type: ignore[assignment]
    return layer


def route(m: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(weights, ids), uneven: expert 0 gets most tokens."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(m, EXPERTS, generator=generator) + torch.tensor([0.6, 0.1, 0, 0, 0.2])
    weights, ids = scores.topk(TOP_K)
    return weights.softmax(-1), ids.int()


def exact(
    x: torch.Tensor,
    w13: list[torch.Tensor],
    w2: list[torch.Tensor],
    weights: torch.Tensor,
    ids: torch.Tensor,
    local: dict[int, int],
    on_input: bool,
) -> torch.Tensor:
    """float64 (M, H), expert by expert from dequantized matrices; ``local``: global to local expert."""
    out = torch.zeros(x.shape, dtype=torch.float64)
    for token in range(x.shape[0]):
        for weight, e in zip(weights[token].double(), ids[token].tolist(), strict=True):
            if e not in local:
                continue
            gate, up = (w13[local[e]] @ x[token].double() * (weight if on_input else 1)).chunk(2)
            hidden = torch.nn.functional.silu(gate) * up
            out[token] += w2[local[e]] @ hidden * (1 if on_input else weight)
    return out


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Within the roundings of the two intermediate results in BF16, relative to the row's size."""
    allowed = 2.0**-6 * (expected.abs() + expected.square().mean(-1, keepdim=True).sqrt())
    return bool(((found.double() - expected).abs() <= allowed).all())


def weights_of(name: str, n: int, k: int) -> list[CanonicalWeight]:
    return [random_weight(n, k, seed=10 * n + e, **FORMATS[name]) for e in range(EXPERTS)]


@pytest.mark.parametrize("mode", ["all", "parallel", "on-input", "none-chosen", "parallel-none-chosen"])
@pytest.mark.parametrize("name", FORMATS)
def test_experts_compute_what_the_dequantized_ones_do(name: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "moe_align_block_size", align)
    parallel = mode.startswith("parallel")
    local = {2: 0, 0: 1, 4: 2} if parallel else {e: e for e in range(EXPERTS)}
    expert_map = None
    if parallel:
        expert_map = torch.tensor([local.get(e, -1) for e in range(EXPERTS)], dtype=torch.int32)
    layer = layer_of(expert_map, mode == "on-input")
    matrices = {"w13": weights_of(name, 2 * INNER, HIDDEN), "w2": weights_of(name, HIDDEN, INNER)}
    stacks, dense = {}, {}
    for matrix, experts in matrices.items():
        experts = experts[: len(local)]
        stacks[matrix] = ExpertStack([[pack_cuda(w)] for w in experts])
        stacks[matrix].register(layer, f"{matrix}_packed")
        dense[matrix] = [w.dequantize(torch.float64) for w in experts]
    for m in (1, 2, 40):
        x = torch.randn(m, HIDDEN, generator=torch.Generator().manual_seed(m)).bfloat16()
        weights, ids = route(m, m)
        if mode.endswith("none-chosen"):
            ids[0], ids[m // 2, 1] = -1, -1  # a row without any expert, and one with half of them
        found = run_experts(layer, stacks["w13"], stacks["w2"], x, weights, ids)
        expected = exact(x, dense["w13"], dense["w2"], weights, ids, local, mode == "on-input")
        assert found.dtype == x.dtype
        assert close(found, expected)
        assert bool(found[0].any()) != mode.endswith("none-chosen")
    empty = run_experts(layer, stacks["w13"], stacks["w2"], x[:0], weights[:0], ids[:0])
    assert empty.shape == (0, HIDDEN)


def test_experts_one_by_one_skip_slots_without_an_expert() -> None:
    """Without the grouped kernels: -1 is no index into the map of experts."""
    layer = layer_of(torch.tensor([1, -1, 0, -1, 2], dtype=torch.int32), False)
    local = {2: 0, 0: 1, 4: 2}
    generator = torch.Generator().manual_seed(0)
    dense = {
        (matrix, e): torch.randn(n, k, generator=generator, dtype=torch.float64) / k**0.5
        for matrix, n, k in (("w13", 2 * INNER, HIDDEN), ("w2", HIDDEN, INNER))
        for e in local.values()
    }
    method = VqpMoEMethod(StoredScheme(Int(4), 32), SimpleNamespace(is_act_and_mul=True), "experts")
    method._packed = {key: lambda _, x, w=w: (x.double() @ w.T).to(x.dtype) for key, w in dense.items()}
    x, (weights, ids) = torch.randn(6, HIDDEN, generator=generator).bfloat16(), route(6, 3)
    ids[0], ids[4, 0] = -1, -1
    found = method.apply(layer, x, weights, ids, None, None)
    w13, w2 = ([dense[matrix, e] for e in range(3)] for matrix in ("w13", "w2"))
    assert close(found, exact(x, w13, w2, weights, ids, local, False))
    assert not found[0].any()


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("device", ["ONE_BLOCK", "SPLITTING", "CLUSTERED"])
def test_the_emulated_kernel_in_the_method(device: str, parallel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's own source behind both calls: router weights, and zeros for experts of other ranks and for none."""

    def emulate(*arguments: Any, **named: Any) -> torch.Tensor:
        return emulated.experts(*arguments, **named, device=getattr(emulated, device), seed=1)

    monkeypatch.setattr(layers, "moe_align_block_size", align)
    monkeypatch.setattr(cuda_experts, "experts_cuda", emulate)
    local = {2: 0, 0: 1, 4: 2} if parallel else {e: e for e in range(EXPERTS)}
    layer = layer_of(torch.tensor([1, -1, 0, -1, 2], dtype=torch.int32) if parallel else None, False)
    stacks, dense = {}, {}
    for matrix, (n, k) in {"w13": (2 * INNER, HIDDEN), "w2": (HIDDEN, INNER)}.items():
        experts = weights_of("int4-act-order", n, k)[: len(local)]
        stacks[matrix] = ExpertStack([[pack_cuda(w)] for w in experts])
        stacks[matrix].register(layer, f"{matrix}_packed")
        dense[matrix] = [w.dequantize(torch.float64) for w in experts]
    x, (weights, ids) = torch.randn(6, HIDDEN).bfloat16(), route(6, 3)
    ids[2], ids[4, 0] = -1, -1
    found = run_experts(layer, stacks["w13"], stacks["w2"], x, weights, ids)
    assert close(found, exact(x, dense["w13"], dense["w2"], weights, ids, local, False))


def test_large_tiles_of_warpgroups(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prefill kernel in the grouped form: tiles of 128 pairs, one of an absent expert, router weights."""
    monkeypatch.setattr(cuda_ops.native, "has_warpgroups", lambda device: True)
    weights = weights_of("int4", 40, HIDDEN)[:2]
    packed, pairs = stack_cuda([pack_cuda(w) for w in weights]), 240
    assert cuda_ops.tile_tokens(packed, pairs, 2, torch.device("cuda")) == 128
    assert cuda_ops.tile_tokens(packed, pairs, 2, torch.device("cuda"), batch_invariant=True) == 64
    x, factors = torch.randn(120, HIDDEN).bfloat16(), torch.rand(pairs)
    ids = torch.arange(pairs).view(-1, 2) % 3
    rows, tiles, used = align(ids, 128, 3, torch.tensor([1, -1, 0], dtype=torch.int32), pad_sorted_ids=True)
    y = emulated.experts(
        x, packed, rows, tiles, used, 128, 2, pairs, row_scales=factors, device=emulated.HOPPER, splits=1
    )
    for pair, e in enumerate(ids.flatten().tolist()):
        if e == 1:
            assert not y[pair].any()
            continue
        expected = weights[1 - e // 2].dequantize(torch.float64) @ x[pair // 2].double() * factors[pair].double()
        assert torch.allclose(y[pair].double(), expected, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("act_order", [False, True])
def test_the_method_loads_a_rank_into_stacks(act_order: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """From checkpoint tensors through the loaders to the grouped call, on rank 1 of 2."""
    monkeypatch.setenv("VQP_CUDA_KERNELS", "1")
    monkeypatch.setattr(kernel, "device_of", lambda device: Device("cuda", (9, 0)))
    monkeypatch.setattr("vllm_quant_kernels.cuda.library.load", lambda: None)
    monkeypatch.setattr(layers, "moe_align_block_size", align)
    scheme = StoredScheme(Int(4), 16, symmetric=False, act_order=act_order, storage=GPTQ_V2)
    moe = SimpleNamespace(has_bias=False, tp_size=2, tp_rank=1, is_act_and_mul=True)
    method, layer = VqpMoEMethod(scheme, moe, "experts"), layer_of(None, False)
    layer._map_global_expert_id_to_local_expert_id = lambda e: e
    inner = 2 * INNER
    method.create_weights(layer, EXPERTS, HIDDEN, INNER, torch.bfloat16)
    dense: dict[str, list[torch.Tensor]] = {"w13": [], "w2": []}
    order = "shuffled" if act_order else "none"
    for e in range(EXPERTS):
        shards = {}
        for shard, matrix, n, k in (
            ("w1", "w13", inner, HIDDEN), ("w3", "w13", inner, HIDDEN), ("w2", "w2", HIDDEN, inner)
        ):  # fmt: skip
            # Gate and up of expert 0 gather alike, those of the others do not: stacks of two pieces.
            seed = 7 if e == 0 and matrix == "w13" else 10 * e + int(shard[1])
            w = random_weight(n, k, 4, 16, "integer", order=order, scale_dtype=torch.float16, seed=seed)
            w.zeros.clamp_(min=1)  # type: ignore[union-attr]  # GPTQ v1 stores zero points less one
            shards[shard] = w.dequantize(torch.float64)
            for leaf, tensor in get_format(scheme).pack(w, scheme).items():
                parameter = getattr(layer, f"{matrix}_{leaf}")
                parameter.weight_loader(parameter, tensor, f"{matrix}_{leaf}", shard, e)
        dense["w13"].append(torch.cat([shards["w1"][INNER:], shards["w3"][INNER:]]))
        dense["w2"].append(shards["w2"][:, INNER:])
    method.process_weights_after_loading(layer)
    names = {name for name, _ in layer.named_parameters()}
    assert names >= {"w13_packed", "w13_packed_scales", "w13_packed_zeros", "w2_packed"}
    assert ("w13_packed_1" in names) == act_order
    assert not any(name.startswith("w13_packed_0") for name in names)
    x, (weights, ids) = torch.randn(9, HIDDEN).bfloat16(), route(9, 1)
    found = method.apply(layer, x, weights, ids, None, None)
    assert close(found, exact(x, dense["w13"], dense["w2"], weights, ids, {e: e for e in range(EXPERTS)}, False))


def test_a_stack_keeps_what_each_expert_is() -> None:
    """Experts whose packing chose differently: zero points, scale dtypes, permutations, padding, block sizes."""
    mixes: list[list[dict[str, Any]]] = [
        [{"zeros": "none"}, {"zeros": "integer"}, {"zeros": "none"}],
        [{"zeros": "integer"}, {"zeros": "floating"}, {"zeros": "none"}],
        [{"scale_dtype": torch.float16}, {"scale_dtype": torch.bfloat16}, {"scale_dtype": torch.float32}],
        [{"order": "shuffled"}, {"order": "none"}],
    ]
    for number, mix in enumerate(mixes):
        weights = [random_weight(40, 200, 4, 32, seed=number + e, **fields) for e, fields in enumerate(mix)]
        stack = stack_cuda([pack_cuda(w) for w in weights])
        for e, w in enumerate(weights):
            assert torch.allclose(
                dequantize_cuda(stack.expert(e), torch.float64), w.dequantize(torch.float64), atol=1e-5
            )
    shards = [random_weight(24, 520, 5, 32, "integer", order="shard", seed=e) for e in range(6)]
    parts = [pack_cuda(w) for w in shards]
    assert len({p.k_padded for p in parts}) > 1, "the case has no shards of different lengths"
    stack = stack_cuda(parts)
    for e, w in enumerate(shards):
        assert torch.equal(dequantize_cuda(stack.expert(e), torch.float64), w.dequantize(torch.float64))


@pytest.mark.parametrize("at", [32, 20])
def test_rows_of_a_packed_weight_come_apart(at: int) -> None:
    w = random_weight(50, 96, 3, 32, "integer", order="shuffled")
    upper, lower = split_rows(pack_cuda(w), at)
    both = torch.cat([dequantize_cuda(upper), dequantize_cuda(lower)])
    assert (upper.n, lower.n) == (at, 50 - at)
    assert torch.equal(both, w.dequantize())


def test_weights_that_do_not_stack_are_refused() -> None:
    with pytest.raises(ValueError, match="no experts"):
        stack_cuda([])
    with pytest.raises(ValueError, match="differ"):
        stack_cuda([pack_cuda(random_weight(16, 64, bits)) for bits in (4, 5)])
