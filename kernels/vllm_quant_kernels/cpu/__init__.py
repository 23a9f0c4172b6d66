"""Kernels for CPUs: operators, packing and layout over ``libvqp_cpu.so``."""
