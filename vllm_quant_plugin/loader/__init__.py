"""From checkpoint tensors to canonical weights of one rank: what every quantized vLLM layer loads through."""
