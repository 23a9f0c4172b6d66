"""Proof on the machine: what this project's CUDA kernels have shown to be right, and faster, on this very GPU.

    vllm-quant verify-kernels --> run.py: each family in a child process with a time limit (child.py)
                                  correctness (weight_only.py, w8a8.py, experts.py), then speed (speed.py)
                              --> a verdict (verdict.py), a file in the user's cache (store.py)
    registry.choose           --> proven.py reads the verdict of the GPUs that this process sees (machine.py)

No verdict, a stale one or a failed one: another kernel serves.
"""
