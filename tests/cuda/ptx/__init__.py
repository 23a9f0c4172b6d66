"""The PTX that nvcc emits for the kernels: :mod:`.opcodes` compares its opcodes with a record."""
