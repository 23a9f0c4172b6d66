"""The checks of the families, on the CPU: right kernels pass, emulated ones too, and small errors are found."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.cuda import emulated
from vllm_quant_kernels.cuda import ops
from vllm_quant_kernels.cuda.verify import speed, w8a8, weight_only
from vllm_quant_kernels.cuda.verify.cases import Place, WrongError
from vllm_quant_kernels.cuda.verify.child import check_family, outcome
from vllm_quant_kernels.cuda.verify.families import FAMILIES, SPEED_CLASSES
from vllm_quant_kernels.cuda.w8a8 import ops as w8a8_ops

CPU = Place(torch.device("cpu"), large=False, numbers=2)
PARTS = ["pack", "quantize", "wna16-int3-narrow", "wna16-fp8-narrow", "w8a8-fp8-fused", "w8a8-int8-narrow",
         "w8a8-fp8-blocks-narrow", "experts-int4"]  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_the_references_are_right(name: str) -> None:
    assert outcome(lambda: check_family(FAMILIES[name], CPU)) == {"status": "right", "reason": ""}


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.part == "wide"])
def test_wide_kernels_are_absent_without_hopper(name: str) -> None:
    assert outcome(lambda: check_family(FAMILIES[name], CPU))["status"] == "absent"


def test_the_emulated_kernel_passes_and_a_defect_in_it_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels' source behind the operator's interface."""
    broken = False

    def linear(x: torch.Tensor, packed: Any, bias: Any = None, batch_invariant: bool = False) -> torch.Tensor:
        y = emulated.linear(x.contiguous(), packed, bias, batch_invariant=batch_invariant)
        if broken and x.shape[0] == 13:
            y[12, 7] = torch.nextafter(y[12, 7], y.new_tensor(torch.inf)) * 1.02
        return y

    monkeypatch.setattr(ops, "linear_cuda", linear)
    rows = (8, 13)
    weight_only._random("int5", Place(CPU.device, large=False, numbers=2), rows)
    weight_only._batch_invariance("int5", CPU, 24)
    broken = True
    with pytest.raises(WrongError, match=r"error .* times what is allowed"):
        weight_only._random("int5", Place(CPU.device, large=False, numbers=6), rows)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_one_wrong_output_of_a_w8a8_product_is_found(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = w8a8_ops.linear_w8a8

    def linear(*arguments: Any, **options: Any) -> torch.Tensor:
        y = right(*arguments, **options)
        y[0, 5] = y[0, 5] * 1.05
        return y

    monkeypatch.setattr(w8a8_ops, "linear_w8a8", linear)
    with pytest.raises(WrongError):
        w8a8._random(kind, "own", CPU)


def test_a_result_that_changes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right, calls = ops.linear_cuda, [0]

    def linear(*arguments: Any, **options: Any) -> torch.Tensor:
        calls[0] += 1
        y = right(*arguments, **options)
        if calls[0] % 2 == 0:
            y[0, 0] = torch.nextafter(y[0, 0], y.new_tensor(torch.inf))
        return y

    monkeypatch.setattr(ops, "linear_cuda", linear)
    with pytest.raises(WrongError, match="repeated: the bits differ"):
        weight_only._random("int4", CPU, (1, 8))


def test_what_a_kernel_raises_becomes_a_status() -> None:
    def fail(error: BaseException) -> dict[str, str]:
        def work() -> None:
            raise error

        return outcome(work)

    assert fail(RuntimeError("CUDA error: an illegal instruction was encountered\nmore"))["status"] == "died"
    assert fail(RuntimeError("the CUDA runtime answers cudaError_t 715"))["status"] == "died"
    assert fail(torch.OutOfMemoryError("CUDA out of memory"))["status"] == "unfinished"
    assert fail(ValueError("\x1b[31m"))["reason"] == "ValueError:  [31m"


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CUDA kernels pack and compute on the CPU, where they need no library."""
    monkeypatch.setenv("VQP_CUDA_KERNELS", "1")
    monkeypatch.setattr("vllm_quant_kernels.cuda.library.load", lambda: None)
    monkeypatch.setattr("vllm_quant_kernels.cuda.w8a8.native.library", lambda: None)


@pytest.mark.usefixtures("no_library")
@pytest.mark.parametrize("timed", SPEED_CLASSES)
def test_every_class_is_timed_beside_another_kernel(timed: str) -> None:
    found = list(speed.timings(timed, CPU, speed.Sizes(((32, 128),), (1, 4))))
    assert [(t.m, t.n, t.k) for t in found] == [(1, 32, 128), (4, 32, 128)]
    assert all(t.ours > 0 and t.theirs > 0 and not t.peer.startswith("cuda-") for t in found)


@pytest.mark.usefixtures("no_library")
def test_a_peer_that_computes_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "TOLERANCE", -1.0)
    with pytest.raises(ValueError, match="differ by"):
        list(speed.timings("wna16-int4", CPU, speed.Sizes(((32, 128),), (1,))))
