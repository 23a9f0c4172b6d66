"""The grouped kernels on a GPU, expert by expert against fp64. Needs torch and pytest only."""

from __future__ import annotations

import pytest
import torch
from gpu_cases import activations, check, order_by_expert, random_weight

from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.cuda.ops import experts_cuda, tile_tokens
from vllm_quant_kernels.cuda.pack import dequantize_cuda, pack_cuda
from vllm_quant_kernels.cuda.stack import stack_cuda
from vllm_quant_kernels.cuda.weight import PackedCuda

EXPERTS, TOP_K, M = 8, 2, 37
FORMATS = [
    ("4", 64, "integer", "none"),
    ("3", 128, "none", "none"),
    ("8", None, "none", "none"),
    ("4", 32, "integer", "shard"),
    ("fp8_e4m3", None, "none", "none"),
]


def choices(m: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(EXPERTS, generator=generator)[:TOP_K] for _ in range(m)]).flatten()


def stack_of(
    kind: str, group_size: int | None, zeros: str, order: str, n: int = 264
) -> tuple[list[CanonicalWeight], PackedCuda]:
    weights = [random_weight(n, 512, kind, group_size, zeros, order, seed=e) for e in range(EXPERTS)]
    return weights, stack_cuda([pack_cuda(w) for w in weights])


@pytest.mark.parametrize("tokens", [8, 16, 32, 64])
@pytest.mark.parametrize(("kind", "group_size", "zeros", "order"), FORMATS)
def test_each_pair_by_its_expert(kind: str, group_size: int | None, zeros: str, order: str, tokens: int) -> None:
    weights, packed = stack_of(kind, group_size, zeros, order)
    x, chosen = activations(M, weights[0].in_features, torch.bfloat16), choices(M)
    torch.full((64 << 20,), torch.nan, device="cuda")
    y = experts_cuda(x, packed, *order_by_expert(chosen, EXPERTS, tokens), tokens, TOP_K, M * TOP_K)
    for e, w in enumerate(weights):
        mine = (chosen == e).nonzero().flatten().cuda()
        if mine.numel():
            check(y[mine], x[mine // TOP_K], w)


@pytest.mark.parametrize(("kind", "group_size", "zeros", "order"), FORMATS)
def test_large_batches(kind: str, group_size: int | None, zeros: str, order: str) -> None:
    """The tile that vLLM's method would take: 128 rows on Hopper."""
    weights, packed = stack_of(kind, group_size, zeros, order)
    m = 1000
    x, chosen = activations(m, weights[0].in_features, torch.bfloat16), choices(m)
    tokens = tile_tokens(packed, m * TOP_K, EXPERTS, x.device)
    hopper = torch.cuda.get_device_capability()[0] == 9
    assert tokens == (128 if hopper and packed.group_size >= 32 else 64)
    y = experts_cuda(x, packed, *order_by_expert(chosen, EXPERTS, tokens), tokens, TOP_K, m * TOP_K)
    for e, w in enumerate(weights):
        mine = (chosen == e).nonzero().flatten().cuda()
        check(y[mine], x[mine // TOP_K], w)


def test_router_weights_and_experts_of_other_ranks() -> None:
    weights, packed = stack_of("4", 64, "integer", "none")
    local = [3, -1, 0, 7, EXPERTS, 5, 1, 2]  # neither below 0 nor past the last is one of the stack
    chosen, factors = choices(M), torch.rand(M * TOP_K, device="cuda")
    x = activations(M, 512, torch.float16)
    torch.full((64 << 20,), torch.nan, device="cuda")
    routing = order_by_expert(chosen, EXPERTS, 16, local)
    y = experts_cuda(x, packed, *routing, 16, TOP_K, M * TOP_K, row_scales=factors)
    for pair, e in enumerate(chosen.tolist()):
        if not 0 <= local[e] < EXPERTS:
            assert not y[pair].any()
            continue
        expected = weights[local[e]].dequantize(torch.float64) @ x[pair // TOP_K].double() * factors[pair].double()
        assert torch.allclose(y[pair].double(), expected, rtol=2e-3, atol=1e-2)


@pytest.mark.parametrize("m", [1, 3, 200])
def test_batch_invariance(m: int) -> None:
    _, packed = stack_of("4", 128, "none", "none", n=1024)
    x, chosen = activations(300, 512, torch.bfloat16), choices(300)

    def run(rows: int) -> torch.Tensor:
        pairs = rows * TOP_K
        tokens = tile_tokens(packed, pairs, EXPERTS, x.device, batch_invariant=True)
        routing = order_by_expert(chosen[:pairs], EXPERTS, tokens)
        return experts_cuda(x[:rows], packed, *routing, tokens, TOP_K, pairs, batch_invariant=True)

    assert torch.equal(run(m), run(300)[: m * TOP_K])


def test_graph_replay_with_another_routing() -> None:
    """The routing is data: a recorded call follows it."""
    weights, packed = stack_of("4", 64, "integer", "none")
    pairs, tokens = M * TOP_K, 8
    x = activations(M, 512, torch.bfloat16)
    room = pairs + EXPERTS * (tokens - 1)
    rows = torch.zeros(-(-room // tokens) * tokens, dtype=torch.int32, device="cuda")
    experts, used = torch.zeros(rows.numel() // tokens, dtype=torch.int32, device="cuda"), rows.new_zeros(1)

    def route(seed: int) -> torch.Tensor:
        chosen = choices(M, seed)
        new = order_by_expert(chosen, EXPERTS, tokens)
        rows[: int(new[2])] = new[0][: int(new[2])]
        experts[: int(new[2]) // tokens] = new[1][: int(new[2]) // tokens]
        used.copy_(new[2])
        return chosen

    route(0)
    experts_cuda(x, packed, rows, experts, used, tokens, TOP_K, pairs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = experts_cuda(x, packed, rows, experts, used, tokens, TOP_K, pairs)
    for seed in range(3):
        chosen = route(seed)
        y.fill_(torch.nan)
        graph.replay()
        for e, w in enumerate(weights):
            mine = (chosen == e).nonzero().flatten().cuda()
            if mine.numel():
                check(y[mine], x[mine // TOP_K], w)


def test_the_stack_is_what_the_experts_are() -> None:
    weights, packed = stack_of("4", 32, "integer", "shard")
    for e, w in enumerate(weights):
        assert torch.equal(dequantize_cuda(packed.expert(e), torch.float64), w.dequantize(torch.float64))
