"""The real child, whose weight-only operator returns one wrong element at M = 8, as a kernel with a defect would."""

from __future__ import annotations

from typing import Any

import torch

from vllm_quant_kernels.cuda import ops
from vllm_quant_kernels.cuda.verify import child

_right = ops.linear_cuda


def _wrong(x: torch.Tensor, packed: Any, *arguments: Any, **options: Any) -> torch.Tensor:
    y = _right(x, packed, *arguments, **options)
    if x.shape[0] == 8:
        y[3, 1] *= 1.01
    return y


ops.linear_cuda = _wrong

if __name__ == "__main__":
    raise SystemExit(child.main())
