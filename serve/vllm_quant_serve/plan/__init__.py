"""Planning: what fits, where, and with how many KV tokens. Nothing here imports torch."""
