"""Llama, Qwen2, Qwen3 and Mixtral in a page of PyTorch: an oracle that shares no code with vLLM or the plugin.

Every projection goes through one hook, so a test can quantize its input as a W8A8 kernel must.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import linear, scaled_dot_product_attention, silu

InputHook = Callable[[str, torch.Tensor], torch.Tensor]


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight


def _rotate(x: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotary embedding of (T, heads, head_dim), halves rotated against each other (NeoX order)."""
    tokens, _, width = x.shape
    inverse = theta ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle = (torch.arange(tokens, dtype=torch.float64)[:, None] * inverse)[:, None, :].to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()), dim=-1)


def _through_fp8(x: torch.Tensor, scale: float) -> torch.Tensor:
    """x as vLLM's CPU cache in float8_e4m3fn with ``scale`` gives it back: rounded toward zero.

    Three mantissa bits above 2^-6, steps of 2^-9 below. Seen: logits agree to 3e-6 this way, and
    to 0.2 with rounding to nearest.
    """
    magnitude = (x / scale).abs().clamp(max=448)
    step = torch.exp2(torch.frexp(magnitude).exponent.clamp(min=-5) - 4.0)
    return torch.sign(x) * torch.floor(magnitude / step) * step * scale


class ReferenceModel:
    """A decoder on explicit tensors.

    Args:
        config: config.json of one of ``tiny_models.ARCHITECTURES``.
        tensors: dense weights by checkpoint name.
        dtype: of the whole computation.
        on_input: called with a module's name and its input (T, K); what it returns is used instead.
        kv_scales: (k, v) scales of a cache in float8_e4m3fn; without, keys and values are not rounded.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        tensors: Mapping[str, torch.Tensor],
        dtype: torch.dtype = torch.float64,
        on_input: InputHook | None = None,
        kv_scales: tuple[float, float] | None = None,
    ) -> None:
        self.config = config
        self.tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        self.on_input = on_input
        self.kv_scales = kv_scales

    def _project(self, name: str, x: torch.Tensor) -> torch.Tensor:
        if self.on_input is not None:
            x = self.on_input(name, x).to(x.dtype)
        return linear(x, self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias"))

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return _rms_norm(x, self.tensors[f"{name}.weight"], self.config["rms_norm_eps"])

    def _attention(self, stem: str, x: torch.Tensor) -> torch.Tensor:
        heads, width = self.config["num_attention_heads"], self.config["head_dim"]
        q, k, v = (self._project(f"{stem}.{p}_proj", x).unflatten(-1, (-1, width)) for p in "qkv")
        if f"{stem}.q_norm.weight" in self.tensors:
            q, k = self._norm(f"{stem}.q_norm", q), self._norm(f"{stem}.k_norm", k)
        q, k = (_rotate(t, self.config["rope_theta"]) for t in (q, k))
        if self.kv_scales is not None:
            k, v = (_through_fp8(t, scale) for t, scale in zip((k, v), self.kv_scales, strict=True))
        k, v = (t.repeat_interleave(heads // t.shape[1], dim=1) for t in (k, v))
        out = scaled_dot_product_attention(*(t.transpose(0, 1)[None] for t in (q, k, v)), is_causal=True)[0]
        return self._project(f"{stem}.o_proj", out.transpose(0, 1).flatten(1))

    def _mlp(self, stem: str, x: torch.Tensor, gate: str, up: str, down: str) -> torch.Tensor:
        hidden = silu(self._project(f"{stem}.{gate}", x)) * self._project(f"{stem}.{up}", x)
        return self._project(f"{stem}.{down}", hidden)

    def _experts(self, stem: str, x: torch.Tensor) -> torch.Tensor:
        router = torch.softmax(linear(x, self.tensors[f"{stem}.gate.weight"]), dim=-1)
        weight, chosen = router.topk(self.config["num_experts_per_tok"], dim=-1)
        weight = weight / weight.sum(dim=-1, keepdim=True)
        out = torch.zeros_like(x)
        for expert in range(self.config["num_local_experts"]):
            tokens, slot = (chosen == expert).nonzero(as_tuple=True)
            if len(tokens):
                y = self._mlp(f"{stem}.experts.{expert}", x[tokens], "w1", "w3", "w2")
                out.index_add_(0, tokens, y * weight[tokens, slot, None])
        return out

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """(T, V) logits after each of T tokens."""
        x = self.tensors["model.embed_tokens.weight"][torch.tensor(tokens)]
        for i in range(self.config["num_hidden_layers"]):
            stem = f"model.layers.{i}"
            x = x + self._attention(f"{stem}.self_attn", self._norm(f"{stem}.input_layernorm", x))
            y = self._norm(f"{stem}.post_attention_layernorm", x)
            if f"{stem}.block_sparse_moe.gate.weight" in self.tensors:
                x = x + self._experts(f"{stem}.block_sparse_moe", y)
            else:
                x = x + self._mlp(f"{stem}.mlp", y, "gate_proj", "up_proj", "down_proj")
        x = self._norm("model.norm", x)
        if self.config["tie_word_embeddings"]:
            return linear(x, self.tensors["model.embed_tokens.weight"])
        return self._project("lm_head", x)
