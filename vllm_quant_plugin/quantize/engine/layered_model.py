"""A transformers model of which one decoder layer at a time is in memory.

The model is built without weights. Everything outside the decoder layers is loaded for the first step and
dropped after it; a layer is loaded when its turn comes and dropped after it. Tensor names follow the checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from vllm_quant_plugin.checkpoint import Checkpoint
from vllm_quant_plugin.console import suppress_output
from vllm_quant_plugin.errors import BackendError
from vllm_quant_plugin.quantize.engine.experts import separate_experts
from vllm_quant_plugin.quantize.io.shards import read_tensor

TOKENS_PER_BATCH = 4096
_OTHER = "use --backend gptqmodel, or a method that needs no calibration (int8, fp8, rtn)"


class _Recorder(nn.Module):
    """Stands in for a decoder layer: keeps the arguments it is called with and returns its input."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        # Models read attributes such as attention_type from their layers; keep it out of the module tree.
        self.__dict__["_layer"] = layer
        self.kwargs: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_layer"], name)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args:
            raise BackendError("this architecture passes positional arguments to its layers", _OTHER)
        self.kwargs = kwargs
        return hidden_states


class _Constant(_Recorder):
    """Stands in for a decoder layer: returns what it was given when it was made."""

    def __init__(self, layer: nn.Module, hidden: torch.Tensor) -> None:
        super().__init__(layer)
        self.__dict__["_hidden"] = hidden

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.__dict__["_hidden"]


def _decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The longest list of modules that hold linear modules, with its name."""
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and any(isinstance(m, nn.Linear) for m in module.modules())
    ]
    if not lists:
        raise BackendError("no decoder layers found in this architecture", _OTHER)
    # Outermost first: experts of a layer are a list as well.
    return min(lists, key=lambda item: item[0].count("."))


class LayeredModel:
    """See the module's docstring.

    Args:
        checkpoint: an unquantized model.
        device: where layers are run.

    Attributes:
        layers: number of decoder layers.

    Raises:
        BackendError: the architecture is unknown to transformers or its tensors are named otherwise.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self._checkpoint, self.device = checkpoint, device
        self._model = self._build()
        self._list_name, self._layers = _decoder_layers(self._model)
        self.layers = len(self._layers)
        self._prefix = self._find_prefix()
        self._load_outside()

    def _build(self) -> nn.Module:
        try:
            with suppress_output():
                from accelerate import init_empty_weights  # type: ignore[import-untyped]
                from transformers import AutoConfig, AutoModelForCausalLM

                config = AutoConfig.from_pretrained(str(self._checkpoint.path), local_files_only=True)
                with init_empty_weights():
                    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
        except ImportError as err:
            raise BackendError(f"{err.name} is not installed", "pip install 'vllm-quant-plugin[quantize]'") from None
        except (ValueError, KeyError, OSError, AttributeError) as err:
            raise BackendError(f"transformers cannot build this model: {str(err).splitlines()[0]}", _OTHER) from None
        separate_experts(model, self._checkpoint.tensors)
        return model.eval()

    def _find_prefix(self) -> str:
        """The checkpoint's name of the layer list, e.g. ``model.layers``."""
        wanted = [name for name, _ in self._layers[0].named_parameters()]
        pattern = re.compile(rf"^(.*)\.0\.{re.escape(wanted[0])}$")
        for name in self._checkpoint.tensors:
            found = pattern.match(name)
            if found and all(f"{found[1]}.0.{leaf}" in self._checkpoint.tensors for leaf in wanted):
                return found[1]
        raise BackendError("the checkpoint names its layers' tensors otherwise than transformers does", _OTHER)

    def _assign(self, module: nn.Module, name: str, tensor: torch.Tensor) -> None:
        owner, _, leaf = name.rpartition(".")
        target = module.get_submodule(owner)
        setattr(target, leaf, nn.Parameter(tensor.to(self.device, torch.float32), requires_grad=False))

    def _load_outside(self) -> None:
        inner, outer = self._list_name.rpartition(".")[0], self._prefix.rpartition(".")[0]
        for name, parameter in list(self._model.named_parameters()):
            if name.startswith(f"{self._list_name}."):
                continue
            stored = name if not inner else name.replace(f"{inner}.", f"{outer}." if outer else "", 1)
            if name.startswith(f"{inner}.") and stored in self._checkpoint.tensors and parameter.is_meta:
                self._assign(self._model, name, read_tensor(self._checkpoint, stored))
        for buffer in self._model.buffers():
            buffer.data = buffer.data.to(self.device)

    def drop_outside(self) -> None:
        """Free what is outside the decoder layers: after ``embed`` it is not needed."""
        for name, parameter in list(self._model.named_parameters()):
            if not name.startswith(f"{self._list_name}.") and not parameter.is_meta:
                owner, _, leaf = name.rpartition(".")
                empty = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
                setattr(self._model.get_submodule(owner), leaf, empty)

    def layer_prefix(self, index: int) -> str:
        """Checkpoint name of a layer, e.g. ``model.layers.3``."""
        return f"{self._prefix}.{index}"

    def layer_tensors(self, index: int) -> list[str]:
        """Names of all tensors of a layer in the checkpoint."""
        prefix = f"{self.layer_prefix(index)}."
        return sorted(name for name in self._checkpoint.tensors if name.startswith(prefix))

    @torch.no_grad()
    def embed(self, tokens: list[list[int]]) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
        """What enters the first layer.

        Args:
            tokens: windows of equal length.

        Returns:
            Hidden states per batch, float32 (B, L, hidden), and each layer's keyword arguments.
        """
        count, length = len(tokens), len(tokens[0])
        # A divisor, so that arguments with a batch dimension fit every batch.
        size = max(b for b in range(1, count + 1) if count % b == 0 and (b * length <= TOKENS_PER_BATCH or b == 1))
        recorders = [_Recorder(layer) for layer in self._layers]
        owner_name, _, leaf = self._list_name.rpartition(".")
        owner = self._model.get_submodule(owner_name)
        setattr(owner, leaf, nn.ModuleList(recorders))
        batches = []
        try:
            for start in range(0, count, size):
                ids = torch.tensor(tokens[start : start + size], device=self.device)
                batches.append(self._first_input(owner, ids, recorders[0]))
        finally:
            setattr(owner, leaf, self._layers)
        return batches, [recorder.kwargs for recorder in recorders]

    @staticmethod
    def _first_input(owner: nn.Module, ids: torch.Tensor, first: _Recorder) -> torch.Tensor:
        caught: list[torch.Tensor] = []
        handle = first.register_forward_hook(lambda _m, _args, out: caught.append(out))
        try:
            owner(input_ids=ids, use_cache=False)
        finally:
            handle.remove()
        return caught[0]

    @torch.no_grad()
    def logits(self, hidden: torch.Tensor, tokens: list[list[int]]) -> torch.Tensor:
        """What the model says behind its decoder layers.

        Args:
            hidden: output of the last layer, (B, L, hidden).
            tokens: the batch's windows.

        Returns:
            float32 (B, L, vocabulary).
        """
        model: Any = self._model
        head = model.get_output_embeddings()
        if head.weight.is_meta:
            name = "lm_head.weight"
            tied = model.get_input_embeddings().weight
            weight = read_tensor(self._checkpoint, name) if name in self._checkpoint.tensors else tied
            head.weight = nn.Parameter(weight.to(self.device, torch.float32), requires_grad=False)
        owner_name, _, leaf = self._list_name.rpartition(".")
        owner = self._model.get_submodule(owner_name)
        setattr(owner, leaf, nn.ModuleList(_Constant(layer, hidden) for layer in self._layers))
        try:
            ids = torch.tensor(tokens, device=self.device)
            return model(input_ids=ids, use_cache=False).logits.float()
        finally:
            setattr(owner, leaf, self._layers)

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        """The layer with its weights in float32, during the block."""
        layer = self._layers[index]
        prefix = self.layer_prefix(index)
        for name, parameter in list(layer.named_parameters()):
            stored = f"{prefix}.{name}"
            if stored not in self._checkpoint.tensors:
                raise BackendError(f"tensor {stored} is missing from the checkpoint", _OTHER)
            tensor = read_tensor(self._checkpoint, stored)
            if tensor.shape != parameter.shape:
                raise BackendError(f"{stored} is {list(tensor.shape)}, expected {list(parameter.shape)}", _OTHER)
            self._assign(layer, name, tensor)
        for name, buffer in list(layer.named_buffers()):
            if f"{prefix}.{name}" in self._checkpoint.tensors:
                # Such as a router's correction bias.
                buffer.data = read_tensor(self._checkpoint, f"{prefix}.{name}").to(self.device, buffer.dtype)
        try:
            yield layer
        finally:
            layer.to("meta")


@torch.no_grad()
def run_layer(layer: nn.Module, hidden: torch.Tensor, kwargs: Mapping[str, Any]) -> torch.Tensor:
    """A layer's output hidden states, (B, L, hidden)."""
    out = layer(hidden, **kwargs)
    return out[0] if isinstance(out, tuple) else out
