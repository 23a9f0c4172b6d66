"""Which kernel runs, and why not ours: for inspect, the status page, the metrics and plan --explain."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_quant_kernels.cuda.verify import proven
from vllm_quant_kernels.kernel import Device
from vllm_quant_kernels.scheme import E4M3, PER_CHANNEL, ActivationScheme, Codebook, Int, WeightScheme
from vllm_quant_plugin.kernel_use import KernelUse, kernel_use, kernel_uses
from vllm_quant_plugin.schemes import StoredScheme
from vllm_quant_serve.flags import parse_args
from vllm_quant_serve.kernel_proof import kernel_rows

HOPPER = Device("cuda", (9, 0))
INT4 = StoredScheme(Int(4), 128)
FP8 = StoredScheme(E4M3, PER_CHANNEL, activation=ActivationScheme(E4M3))


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VQP_CUDA_KERNELS", raising=False)


def test_the_kernel_and_why_it_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for scheme in (INT4, FP8):
        use = kernel_use(scheme, 4096, 4096, HOPPER)
        assert use.kernel.startswith("vLLM ")
        assert use.why == "not proven: no such GPU is here"
    monkeypatch.setattr(proven, "why_not", lambda name, scheme, device: "slower than vLLM Marlin at M = 512")
    assert (
        kernel_use(INT4, 4096, 4096, HOPPER)
        .sentence()
        .endswith("not this project's kernel: slower than vLLM Marlin at M = 512")
    )
    monkeypatch.setattr(proven, "why_not", lambda name, scheme, device: None)
    assert kernel_use(INT4, 4096, 4096, HOPPER) == KernelUse("vqp W4A16", "INT4 g128 sym")
    monkeypatch.setenv("VQP_CUDA_KERNELS", "0")
    assert kernel_use(INT4, 4096, 4096, HOPPER).why == "VQP_CUDA_KERNELS is 0"
    assert kernel_use(INT4, 4096, 4096, Device("cpu")) == KernelUse("vqp W4A16", "INT4 g128 sym")


def test_a_weight_that_no_kernel_of_ours_reads() -> None:
    nf4 = StoredScheme(Codebook(4, "nf4"), 64)
    if kernel_use(nf4, 256, 256, HOPPER).kernel != "vLLM":
        assert "NF4" in kernel_use(nf4, 256, 256, HOPPER).why


def test_each_kind_once_the_most_frequent_first() -> None:
    found = kernel_uses([(INT4, 64, 128), (FP8, 64, 128), (INT4, 64, 256), (INT4, 64, 128)], Device("cpu"))
    assert [use.scheme for use in found] == ["INT4 g128 sym", FP8.describe()]
    assert WeightScheme(Int(4)).describe() == "INT4 g128 sym"


def test_what_cannot_be_read_has_no_rows(tmp_path: Path) -> None:
    assert kernel_rows(parse_args(["org/model"]), "cuda") == []
    (tmp_path / "config.json").write_text("{")
    assert kernel_rows(parse_args([str(tmp_path)]), "cuda") == []
