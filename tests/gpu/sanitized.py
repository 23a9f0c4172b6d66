"""The calls that tests/gpu/test_sanitizer.py runs under compute-sanitizer: every path once, small.

Results are checked on the CPU: the tools slow cuBLAS down a hundred times.
"""

from __future__ import annotations

import torch
from gpu_cases import KINDS, activations, check_on_cpu, order_by_expert, random_weight

from vllm_quant_kernels.cuda import native as cuda_native
from vllm_quant_kernels.cuda.ops import experts_cuda, linear_cuda
from vllm_quant_kernels.cuda.pack import pack_cuda
from vllm_quant_kernels.cuda.stack import stack_cuda


def main() -> None:
    for number, kind in enumerate(KINDS):
        zeros = ("none", "integer", "floating")[number % 3] if kind.isdigit() else "none"
        order = ("none", "shuffled")[number % 2]
        for m in (3, 12, 30, 70):
            w = random_weight(136, 456, kind, 32, zeros, order, seed=number)
            x = activations(m, 456, (torch.float16, torch.bfloat16)[m // 2 % 2], seed=m)
            check_on_cpu(linear_cuda(x, pack_cuda(w)), x, w)
    experts = [random_weight(136, 320, "4", 32, "integer", "shuffled", seed=e) for e in range(4)]
    stack, chosen = stack_cuda([pack_cuda(w) for w in experts[:3]]), torch.arange(22) * 7 % 4
    x, factors = activations(11, 320, torch.float16), torch.rand(22, device="cuda")
    for tokens in (8, 32):
        routing = order_by_expert(chosen, 4, tokens, [0, 1, 2, -1])
        y = experts_cuda(x, stack, *routing, tokens, 2, 22, row_scales=factors)
        assert not y[(chosen == 3).cuda()].any()
    w = random_weight(136, 1024, "4", 128)
    x, packed = activations(9, 1024, torch.float16), pack_cuda(w)
    for clustered in (0, 1):
        out = torch.empty(9, 136, dtype=x.dtype, device="cuda")
        call = cuda_native.describe(x, out, packed, None, False)
        plan = cuda_native.plan(call)
        plan.splits, plan.clustered = 3, clustered if torch.cuda.get_device_capability()[0] == 9 else 0
        plan.workspace_bytes = 3 * plan.m_tiles * plan.tokens * 136 * 4
        cuda_native.run(call, plan, x.device)
        check_on_cpu(out, x, w)
    hopper = torch.cuda.get_device_capability()[0] == 9
    for tokens, group_size, m in ((128, 32, 150), (128, 128, 20), (256, None, 150)) if hopper else ():
        w, x = random_weight(136, 456, "4", group_size, "integer"), activations(m, 456, torch.bfloat16)
        out, packed = torch.empty(m, 136, dtype=x.dtype, device="cuda"), pack_cuda(w)
        call = cuda_native.describe(x, out, packed, None, False)
        cuda_native.run(call, cuda_native.plan(call, tokens), x.device)
        check_on_cpu(out, x, w)


if __name__ == "__main__":
    main()
