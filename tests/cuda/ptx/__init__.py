"""The PTX that nvcc emits for the kernels: its opcodes compared with a record (:mod:`.opcodes`), and the PTX executed.

docs/internals/cuda-ptx.md describes the modules and what the interpreter refuses.
"""
