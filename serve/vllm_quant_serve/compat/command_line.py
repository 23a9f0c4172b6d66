"""vLLM's command line, which ``vllm_quant_serve.server`` runs."""

from __future__ import annotations

from vllm.entrypoints.cli.main import main

__all__ = ["main"]
