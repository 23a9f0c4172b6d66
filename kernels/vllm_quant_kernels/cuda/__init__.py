"""Kernels for NVIDIA GPUs: operators, packing and layout over ``libvqp_cuda.so``."""
