"""Memory for packed weights, in pages of 2 MB where the system has them to give.

A token reads every weight once. In pages of 4 KB, which on a machine that has run for a while lie all over the memory,
each page costs a translation and ends the run that the core's prefetcher follows: half the bandwidth can go there
(docs/results/performance.md). Linux gives larger pages to memory that asks for them (``madvise``) with
``/sys/kernel/mm/transparent_hugepage/enabled`` at ``madvise`` or ``always``.
"""

from __future__ import annotations

import mmap

import torch

PAGE = 2 << 20
# Each takes up to three of the mappings of a process, of which Linux allows 65530. Experts of large mixtures are many.
MOST = 8192

_taken = 0


def empty_bytes(count: int) -> torch.Tensor:
    """uint8 (count,) of unspecified contents: its whole pages of 2 MB are asked for as such, the rest is not.

    Smaller tensors, and those after the first ``MOST``, are ordinary memory.
    """
    global _taken
    if count < PAGE or _taken >= MOST or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(count, dtype=torch.uint8)
    try:
        # A page more than needed, of which nothing is touched: the tensor begins where a page does.
        memory = mmap.mmap(-1, count + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        offset = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % PAGE
        memory.madvise(mmap.MADV_HUGEPAGE, offset, count // PAGE * PAGE)
    except OSError:  # a kernel without them, or no mapping left
        return torch.empty(count, dtype=torch.uint8)
    _taken += 1
    return torch.frombuffer(memory, dtype=torch.uint8, count=count, offset=offset)
