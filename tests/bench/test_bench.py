"""The bench compares like with like: every contender computes the same product."""

import json
from pathlib import Path

import pytest
import torch

from vllm_quant_plugin.bench.command import run
from vllm_quant_plugin.bench.contenders import cpu_contenders
from vllm_quant_plugin.bench.measure import Contender, copies_for, side_by_side


def test_side_by_side_takes_every_copy_and_contender() -> None:
    seen: list[str] = []
    contenders = [Contender(n, [lambda n=n, i=i: seen.append(f"{n}{i}") for i in range(3)], 1) for n in "ab"]  # type: ignore[misc]
    times = side_by_side(contenders, rounds=3, min_seconds=1e-5)
    assert set(times) == {"a", "b"}
    assert all(t > 0 for t in times.values())
    assert {"a0", "a1", "a2", "b0", "b1", "b2"} <= set(seen)


def test_copies_exceed_the_caches() -> None:
    assert copies_for(1 << 20) * (1 << 20) >= 256 << 20
    assert copies_for(1 << 40) == 2


@pytest.mark.engine
@pytest.mark.parametrize("m", [1, 8])
def test_contenders_agree(m: int) -> None:
    """Each output is within the quantization error of its bits: relative to the BF16 product's norm."""
    found = {c.name: c.calls[0]() for c in cpu_contenders(256, 512, m, cold_bytes=0)}
    base = found.pop("torch BF16").float()
    assert {"in-tree W8A8 (oneDNN)", "vqp W4A16 g128"} <= set(found)
    assert ("in-tree W4A16" in found) == ("avx512f" in Path("/proc/cpuinfo").read_text())
    # RTN of normal weights, relative error of the product: about 2**-bits * 2.3 (asymmetric, g128).
    limits = {"FP8": 0.06, "W2": 0.8, "W3": 0.35, "W4": 0.2, "W8A16": 0.02, "W8A8": 0.03}
    if "vnni" not in Path("/proc/cpuinfo").read_text():
        # oneDNN then adds pairs of products in 16 bits, which saturate.
        limits = {"in-tree W8A8": 0.06, **limits}
    for name, out in found.items():
        error = (out.float() - base).norm() / base.norm()
        limit = next(v for k, v in limits.items() if k in name)
        assert error < limit, (name, float(error))


@pytest.mark.engine
def test_run_gives_plain_json() -> None:
    results = run({"small": (64, 128)}, [1], threads=torch.get_num_threads(), rounds=1, cold_bytes=0)
    case = json.loads(json.dumps(results))["cases"][0]
    assert {c["name"] for c in case["contenders"]} >= {"torch BF16", "vqp W4A16 g128"}
