"""One thread, 16-bit layers and no switch, as in vLLM while it loads a model."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _as_in_vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("VQP_CUDA_KERNELS", raising=False)
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
