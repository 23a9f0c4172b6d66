"""vLLM quantization methods: one file per registered name, over one linear and one MoE method."""
