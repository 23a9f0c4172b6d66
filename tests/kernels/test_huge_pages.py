"""Memory for packed weights: right contents whatever the system gives, and huge pages asked for where they fill."""

from __future__ import annotations

import gc
import mmap
import re
from pathlib import Path

import pytest
import torch

from vllm_quant_kernels.cpu import huge_pages
from vllm_quant_kernels.cpu.huge_pages import PAGE, empty_bytes


def advised(address: int) -> int:
    """Bytes of the mapping at ``address`` that were asked to be huge pages (VmFlags "hg"); 0 if it was not."""
    size = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if head:
            begin, end = (int(part, 16) for part in head.groups())
            size = end - begin if begin == address else 0
        elif size and line.startswith("VmFlags:"):
            return size if " hg" in line else 0
    return 0


@pytest.mark.parametrize("count", [1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE, 3 * PAGE + 4097])
def test_contents_and_sizes(count: int) -> None:
    tensors = [empty_bytes(count) for _ in range(3)]
    for value, tensor in enumerate(tensors):
        assert tensor.shape == (count,)
        assert tensor.dtype == torch.uint8
        tensor.fill_(value)
    gc.collect()  # a mapping lives as long as its tensor
    for value, tensor in enumerate(tensors):
        assert bool((tensor == value).all())
    assert bool((tensors[1].clone() + tensors[2] == 3).all())


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="no huge pages in this Python")
def test_whole_pages_are_asked_for_and_nothing_else() -> None:
    tensor = empty_bytes(2 * PAGE + 4097)
    assert tensor.data_ptr() % PAGE == 0
    if Path("/sys/kernel/mm/transparent_hugepage/enabled").is_file():
        assert advised(tensor.data_ptr()) == 2 * PAGE
    assert advised(empty_bytes(PAGE - 1).data_ptr()) == 0


def test_ordinary_memory_without_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "_taken", huge_pages.MOST)
    assert empty_bytes(PAGE).fill_(7).sum() == 7 * PAGE
    monkeypatch.setattr(huge_pages, "_taken", 0)

    class Refusing(mmap.mmap):
        def madvise(self, *args: int) -> None:
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(huge_pages.mmap, "mmap", Refusing)
    assert empty_bytes(PAGE).fill_(7).sum() == 7 * PAGE
    assert huge_pages._taken == 0
