"""Perplexity and KL divergence of a checkpoint as vLLM runs it."""
