"""vLLM's own linear kernels (Marlin, Machete, Humming, CUTLASS, DeepGEMM, Triton) behind the kernel registry.

    canonical weight -> form (forms.py: what such a kernel can read) -> a module with vLLM's parameters -> vLLM's kernel

    forms.py, names.py    what is possible and which kernel it will be, without torch: planner and ``inspect`` ask
    integers.py           an integer weight in such a form: columns sorted, groups split, codes widened, zero points
    linear.py, scaled.py  the module that vLLM's kernel packs and runs: 16-bit activations, 8-bit activations
    kernels.py            the entries of the kernel registry

vLLM's own functions choose the kernel where the layer is built; ``compat_adapter.py`` imports them.
"""
