"""Bytes of one rank: weights, KV cache, overheads, and what earlier launches showed of them."""
