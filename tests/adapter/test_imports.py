"""Planner and ``inspect`` ask the adapter's kernels without torch and without vLLM."""

import subprocess
import sys


def test_names_and_bytes_import_neither_torch_nor_vllm() -> None:
    code = (
        "import sys, vllm_quant_plugin\n"
        "from vllm_quant_kernels.kernel import Device\n"
        "from vllm_quant_kernels.registry import choose\n"
        "from vllm_quant_kernels.scheme import Int, WeightScheme as W\n"
        "kernel = choose(W(Int(3)), 1024, 3072, Device('cuda')).kernel\n"
        "print(kernel.label(W(Int(3))), kernel.packed_bytes(W(Int(3)), 1024, 3072))\n"
        "print([name for name in ('torch', 'vllm') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    named, imported = done.stdout.splitlines()
    assert named.split()[0] == "vLLM"
    # Three bits a code and a 16-bit scale per 128 of them.
    assert int(named.split()[-1]) == 1024 * 3072 * 3 // 8 + 1024 * 24 * 2
    assert imported == "[]"
