"""The linear method behind all of the plugin's formats: load through ``vllm_quant_plugin.loader``, compute by a kernel.

vLLM makes one method object per layer. It holds what belongs to the layer: the loader while the checkpoint loads, the
packed weight from then on. The packed tensors are parameters of the layer, so that vLLM counts and moves them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch

from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_plugin import compat_layers as layers
from vllm_quant_plugin.loader.matrix import MatrixLoader
from vllm_quant_plugin.loader.part import ShardId
from vllm_quant_plugin.loader.placeholder import Load, Placeholders
from vllm_quant_plugin.loader.shards import check_columns, plan_linear
from vllm_quant_plugin.loader.static_range import StaticRange
from vllm_quant_plugin.methods.kernel import PackedLinear
from vllm_quant_plugin.schemes import StoredScheme


class VqpLinearMethod(layers.LinearMethodBase):
    """Linear method of one layer.

    Args:
        scheme: how the layer's weights are quantized (the same for all of its parts).
        name: the layer's name, for messages.
    """

    _packed: PackedLinear

    def __init__(self, scheme: StoredScheme, name: str) -> None:
        self.scheme = scheme
        self.name = name
        self._placeholders = Placeholders()
        self._matrix: MatrixLoader | None = None
        # Of a layer that vLLM quantizes again: its weight, and what packs it all the same.
        self._unpacked: list[CanonicalWeight] = []
        self._build: Callable[[], None] | None = None

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        plan = plan_linear(layer, input_size, input_size_per_partition, output_size)
        if plan.splits_columns:
            check_columns(self.name, self.scheme, input_size, layer.tp_size)
        device = torch.empty(0).device
        self._dtype = params_dtype
        # vLLM keeps placeholders in a table for as long as their layer lives: they must not keep it alive.
        layer_of: Callable[[], Any] = weakref.ref(layer)

        def build(pieces: list[CanonicalWeight], static: StaticRange) -> None:
            self._packed = PackedLinear.build(pieces, self.scheme, static, device, params_dtype)

        def pack(pieces: list[CanonicalWeight], static: StaticRange) -> None:
            if self._placeholders.requantized(layer_of()):
                self._unpacked, self._build = pieces, lambda: build(pieces, static)
            else:
                build(pieces, static)

        self._matrix = matrix = MatrixLoader(self.name, self.scheme, plan, pack)

        def loader_of(leaf: str) -> Load:
            def load(param: torch.nn.Parameter, loaded_weight: torch.Tensor, shard_id: ShardId = None) -> None:
                matrix.put(shard_id, leaf, loaded_weight)

            return load

        self._placeholders.register(layer, matrix.specs, self.scheme.bits, loader_of)

    def process_weights_after_loading(self, layer: Any) -> None:
        if self._matrix is None:
            return
        self._matrix.close()
        if self._build is not None:
            self._build()
        self._discard_loader(layer)
        self._packed.register(layer)

    def _discard_loader(self, layer: Any) -> None:
        self._matrix, self._build, self._unpacked = None, None, []
        self._placeholders.remove(layer)

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return self._packed(layer, x, bias)

    def tie_weights(self, layer: Any, embed_tokens: Any) -> Any:
        """An LM head that is tied to 16-bit embeddings is 16-bit, whatever the config's default says."""
        self._discard_loader(layer)
        layer.quant_method = layers.UnquantizedEmbeddingMethod()
        layer.weight = embed_tokens.weight
        return layer

    def dequantize_weight(self, layer: Any) -> torch.Tensor:
        """This rank's (N, K) weight in the dtype of the activations.

        Before ``process_weights_after_loading`` vLLM asks for it to quantize the layer again; the layer's parameters
        are released then.
        """
        if self._matrix is not None:
            self._matrix.close()
        if not self._unpacked:
            return self._packed.dequantize(layer).to(self._dtype)
        weight = torch.cat([piece.dequantize().to(self._dtype) for piece in self._unpacked])
        self._discard_loader(layer)
        return weight
