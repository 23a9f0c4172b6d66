"""The 8-bit calls that tests/gpu/test_sanitizer.py runs under compute-sanitizer: every path once, small."""

from __future__ import annotations

import torch
from gpu_cases import activations
from test_w8a8 import HOPPER, KINDS, check, weight

from vllm_quant_kernels.cuda.w8a8 import native as w8a8_native


def main() -> None:
    for kind in KINDS:
        w = weight(136, 456, kind)
        for m in (3, 12, 30, 70, 150):
            x = activations(m, 456, (torch.float16, torch.bfloat16)[m // 2 % 2], seed=m)
            backends = ("fused", "own") if m <= 16 and not w.blocks else ("own",)
            for backend in backends:
                check(w8a8_native.linear(x, w, symmetric=kind != "int8", backend=backend), x, w, None,
                      **({"symmetric": False} if kind == "int8" else {}))  # fmt: skip
    for kind in KINDS if HOPPER else []:
        w, x = weight(264, 456, kind), activations(300, 456, torch.bfloat16)
        for promote in (False, True):
            y = w8a8_native.linear(x, w, promote=promote, backend="wgmma")
            check(y, x, w, None, kept=2.0**-13 if promote or w.blocks else 2.0**-10)
    x, w = activations(2, 9000, torch.bfloat16), weight(64, 9000, "int8")
    check(w8a8_native.linear(x, w, backend="own"), x, w, None)


if __name__ == "__main__":
    main()
