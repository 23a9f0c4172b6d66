"""Runs an algorithm over a model: layer by layer, tensor by tensor, or in a library's process."""
