"""vLLM's own answer about a placement, from a subprocess."""
