"""Runs inside vLLM's workers: sees the logits that vLLM computes for prompt tokens.

vLLM returns prompt log-probabilities as Python objects, one per token and vocabulary entry, which is
too slow for a whole vocabulary. The tap sits on ``model.compute_logits``, which every model runner
calls, and keeps the rows as tensors; the reference's are stored on disk and compared in the worker.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


def kl_per_token(reference: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """KL(reference | model) in nats for each row of log-probabilities (T, V); float64."""
    reference, model = reference.double(), model.double()
    return (reference.exp() * (reference - model)).sum(-1).clamp(min=0)


def kl_top_k(top: torch.Tensor, ids: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """KL with all tokens outside the reference's top k taken as one: a lower bound of the full KL.

    Args:
        top: the reference's k largest log-probabilities (T, k).
        ids: their tokens, int64 (T, k).
        model: log-probabilities (T, V).
    """
    top, chosen = top.double(), model.double().gather(-1, ids)
    inside = (top.exp() * (top - chosen)).sum(-1)
    tiny = torch.finfo(torch.float64).tiny
    rest, other = ((1 - part.exp().sum(-1)).clamp(min=tiny) for part in (top, chosen))
    return (inside + rest * (rest / other).log()).clamp(min=0)


@dataclass
class _State:
    rows: list[torch.Tensor]


class LogitsTap:
    """Worker extension (``worker_extension_cls``). Methods are called by ``collective_rpc`` and return plain types."""

    def vqp_tap_install(self) -> bool:
        """Start keeping logits."""
        state = _State([])
        model = self.model_runner.model  # type: ignore[attr-defined]
        original = model.compute_logits

        def compute_logits(*args: Any, **kwargs: Any) -> Any:
            logits = original(*args, **kwargs)
            # One row is the sampled token's; ranks other than the first have none.
            if logits is not None and logits.shape[0] > 1:
                state.rows.append(logits.detach().float())
            return logits

        model.compute_logits = compute_logits
        self._vqp_tap = state
        return True

    def _take(self, tokens: int) -> torch.Tensor | None:
        state: _State = self._vqp_tap
        rows, state.rows = state.rows, []
        if not rows:
            return None
        logits = torch.cat(rows)
        if logits.shape[0] != tokens:
            raise RuntimeError(f"saw logits of {logits.shape[0]} tokens, expected {tokens}")
        return torch.log_softmax(logits, dim=-1)

    def vqp_tap_score(self, window: list[int]) -> list[float] | None:
        """Log-probability of each token of the window but the first."""
        scores = self._take(len(window) - 1)
        return None if scores is None else _target(scores, window).tolist()

    def vqp_tap_record(self, window: list[int], path: str, top_k: int) -> list[float] | None:
        """As ``vqp_tap_score``; keeps the log-probabilities (all, or the ``top_k`` largest) for ``vqp_tap_compare``."""
        scores = self._take(len(window) - 1)
        if scores is None:
            return None
        if top_k:
            top = scores.topk(min(top_k, scores.shape[-1]), dim=-1)
            torch.save({"top": top.values.cpu(), "ids": top.indices.cpu()}, path)
        else:
            torch.save({"all": scores.cpu()}, path)
        return _target(scores, window).tolist()

    def vqp_tap_compare(self, window: list[int], path: str) -> tuple[list[float], list[float], list[bool]] | None:
        """Log-probability, KL divergence from the recorded reference, and whether the likeliest token is the same."""
        scores = self._take(len(window) - 1)
        if scores is None:
            return None
        kept = {k: v.to(scores.device) for k, v in torch.load(Path(path), weights_only=True).items()}
        if "all" in kept:
            divergence, likeliest = kl_per_token(kept["all"], scores), kept["all"].argmax(-1)
        else:
            divergence, likeliest = kl_top_k(kept["top"], kept["ids"], scores), kept["ids"][:, 0]
        return _target(scores, window).tolist(), divergence.tolist(), (scores.argmax(-1) == likeliest).tolist()


def _target(scores: torch.Tensor, window: list[int]) -> torch.Tensor:
    targets = torch.tensor(window[1:], device=scores.device)
    return scores.double().gather(-1, targets[:, None]).squeeze(-1)
