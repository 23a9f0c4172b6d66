"""Runs inside vLLM's workers: sees the logits that vLLM computes for prompt tokens.

vLLM returns prompt log-probabilities as Python objects, one per token and vocabulary entry, which is
too slow for a whole vocabulary. The tap sits on ``model.compute_logits``, which every model runner
calls, and keeps the rows as tensors; the reference's are stored on disk and compared in the worker.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from vllm_quant_plugin.quantize.io.shards import write_tensors


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


# Decoder layers by their names in vLLM's models.
_LAYER = re.compile(r"(^|\.)(layers|h|blocks)\.\d+$")


@dataclass
class _State:
    rows: list[torch.Tensor] = field(default_factory=list)
    hidden: dict[str, torch.Tensor] = field(default_factory=dict)
    handles: list[Any] = field(default_factory=list)


def hidden_state(output: Any) -> torch.Tensor | None:
    """The hidden states (T, H) in a decoder layer's output: with the residual added that some hand on beside it."""
    if isinstance(output, torch.Tensor):
        return output.float()
    if isinstance(output, tuple) and output and isinstance(output[0], torch.Tensor):
        rest = output[1] if len(output) > 1 else None
        return output[0].float() + rest.float() if isinstance(rest, torch.Tensor) else output[0].float()
    return None


class LogitsTap:
    """Worker extension (``worker_extension_cls``). Methods are called by ``collective_rpc`` and return plain types."""

    def vqp_tap_install(self) -> bool:
        """Start keeping logits."""
        state = _State()
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

    def vqp_tap_watch_layers(self) -> bool:
        """Keep what the decoder layers put out, from now until ``vqp_tap_layers``."""
        state: _State = self._vqp_tap
        for name, module in self.model_runner.model.named_modules():  # type: ignore[attr-defined]
            if not _LAYER.search(name):
                continue

            def keep(_module: Any, _args: Any, output: Any, name: str = name) -> None:
                hidden = hidden_state(output)
                if hidden is not None:
                    state.hidden[name] = hidden.detach().cpu()

            state.handles.append(module.register_forward_hook(keep))
        return True

    def vqp_tap_layers(self, window: list[int], path: str, record: bool) -> list[tuple[str, float]]:
        """Store the layers' hidden states, or compare them with those stored: (layer, relative error) in order."""
        state: _State = self._vqp_tap
        hidden, state.hidden = state.hidden, {}
        for handle in state.handles:
            handle.remove()
        state.handles, state.rows = [], []
        hidden = {name: kept[: len(window)] for name, kept in hidden.items()}
        if record:
            if self.rank == 0:  # type: ignore[attr-defined]
                write_tensors(Path(path), hidden, sync=False)
            return []
        before = load_file(path)
        return [
            (name, float((found - before[name]).norm() / before[name].norm().clamp(min=1e-12)))
            for name, found in hidden.items()
            if name in before and before[name].shape == found.shape
        ]

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
            write_tensors(Path(path), {"top": top.values, "ids": top.indices}, sync=False)
        else:
            write_tensors(Path(path), {"all": scores}, sync=False)
        return _target(scores, window).tolist()

    def vqp_tap_compare(self, window: list[int], path: str) -> tuple[list[float], list[float], list[bool]] | None:
        """Log-probability, KL divergence from the recorded reference, and whether the top-1 token agrees."""
        scores = self._take(len(window) - 1)
        if scores is None:
            return None
        kept = {k: v.to(scores.device) for k, v in load_file(path).items()}
        if "all" in kept:
            divergence, top_token = kl_per_token(kept["all"], scores), kept["all"].argmax(-1)
        else:
            divergence, top_token = kl_top_k(kept["top"], kept["ids"], scores), kept["ids"][:, 0]
        return _target(scores, window).tolist(), divergence.tolist(), (scores.argmax(-1) == top_token).tolist()


def _target(scores: torch.Tensor, window: list[int]) -> torch.Tensor:
    targets = torch.tensor(window[1:], device=scores.device)
    return scores.double().gather(-1, targets[:, None]).squeeze(-1)
