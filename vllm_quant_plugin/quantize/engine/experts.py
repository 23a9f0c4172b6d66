"""Mixtures of experts, one linear module for each expert's matrix, named as in the checkpoint.

transformers keeps all experts of a layer in two 3D tensors; checkpoints and vLLM hold a matrix for each. Before
weights are loaded such a module is replaced by ``SeparateExperts``, whose matrices are modules that can be observed
and quantized like any other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import torch
from torch import nn

from vllm_quant_plugin.errors import BackendError

# gate, up and down as checkpoints name them.
NAMES = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
_FIRST = re.compile(r"\.(?P<block>\w+)\.experts\.0\.(?P<leaf>gate_proj|w1)\.weight$")


class SeparateExperts(nn.Module):
    """Stands in for a transformers experts module with gated, unbiased experts; takes the same arguments.

    Args:
        fused: the module to replace, without weights.
        names: of gate, up and down.
    """

    def __init__(self, fused: nn.Module, names: tuple[str, str, str]) -> None:
        super().__init__()
        both, down = fused.gate_up_proj, fused.down_proj
        assert isinstance(both, torch.Tensor)
        assert isinstance(down, torch.Tensor)
        self.names, self.count = names, both.shape[0]
        hidden, inner = both.shape[2], both.shape[1] // 2
        activation = fused.act_fn
        assert callable(activation)
        self.act_fn: Callable[[torch.Tensor], torch.Tensor] = activation
        for index in range(self.count):
            expert = nn.Module()
            for name, (k, n) in zip(names, ((hidden, inner), (hidden, inner), (inner, down.shape[1])), strict=True):
                expert.add_module(name, nn.Linear(k, n, bias=False, device="meta", dtype=both.dtype))
            self.add_module(str(index), expert)

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Weighted sum of the chosen experts: (T, hidden), (T, top_k), (T, top_k) to (T, hidden)."""
        out = torch.zeros_like(hidden_states)
        for index in range(self.count):
            token, place = torch.where(top_k_index == index)
            if not token.numel():
                continue
            gate, up, down = (self.get_submodule(f"{index}.{name}") for name in self.names)
            x = hidden_states[token]
            y = down(self.act_fn(gate(x)) * up(x)) * top_k_weights[token, place, None]
            out.index_add_(0, token, y.to(out.dtype))
        return out


def _is_fused(module: nn.Module) -> bool:
    both, down = getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None)
    return (
        isinstance(both, nn.Parameter) and isinstance(down, nn.Parameter) and both.ndim == down.ndim == 3
        and hasattr(module, "act_fn")
    )  # fmt: skip


def separate_experts(model: nn.Module, tensors: Iterable[str]) -> None:
    """Replace the experts of every layer of ``model`` where the checkpoint's ``tensors`` hold a matrix for each.

    The block around them takes the checkpoint's name (Mixtral's ``block_sparse_moe``) among the modules, and keeps
    transformers' name as an attribute.

    Raises:
        BackendError: experts with biases, transposed or interleaved ones.
    """
    found = next((match for name in tensors if (match := _FIRST.search(name))), None)
    if found is None:
        return
    names = next(n for n in NAMES if n[0] == found["leaf"])
    for path, module in list(model.named_modules()):
        if not _is_fused(module):
            continue
        strange = getattr(module, "has_bias", False) or getattr(module, "is_transposed", False)
        if strange or not getattr(module, "is_concatenated", True):
            raise BackendError(
                f"the experts of {path} are of a kind that is not quantized here",
                "use --backend gptqmodel, or a method that needs no calibration (int8, fp8, rtn)",
            )
        owner_path, _, leaf = path.rpartition(".")
        owner = model.get_submodule(owner_path)
        setattr(owner, leaf, SeparateExperts(module, names))
        _rename(model, owner_path, found["block"])


def _rename(model: nn.Module, path: str, wanted: str) -> None:
    parent_path, _, leaf = path.rpartition(".")
    if leaf == wanted:
        return
    parent = model.get_submodule(parent_path)
    block = parent._modules.pop(leaf)
    parent.add_module(wanted, block)
    # Found before the table of modules when the layer's code asks for it.
    parent.__dict__[leaf] = block
