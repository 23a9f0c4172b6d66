"""GEMMs of 8-bit weights and 8-bit activations on NVIDIA GPUs."""
