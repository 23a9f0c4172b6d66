"""The one linear method behind all of the plugin's formats.

checkpoint tensors -> staging -> format.unpack -> rank's rows and columns -> stack parts
    -> vllm_quant_kernels.cpu.pack -> layer buffers -> kernel op in apply()
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vllm_quant_kernels.canonical import CanonicalWeight, kind_of
from vllm_quant_kernels.unpack_weight import stack_rows
from vllm_quant_plugin import compat
from vllm_quant_plugin import compat_layers as layers
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.formats import get_format
from vllm_quant_plugin.formats.registry import legal_tp
from vllm_quant_plugin.methods.kernel import PackedLinear
from vllm_quant_plugin.methods.sharding import Part, ShardId, ShardPlan, plan_shards
from vllm_quant_plugin.methods.staging import Staging, placeholder
from vllm_quant_plugin.schemes import StoredScheme


def check_columns(name: str, scheme: StoredScheme, in_features: int, tp_size: int) -> None:
    """Refuse a row-parallel split that cuts a quantization group.

    Raises:
        CheckpointError: naming the TP sizes that work.
    """
    legal = legal_tp(scheme, in_features, range(1, 65))
    if tp_size not in legal:
        step = scheme.block[1] if scheme.block else scheme.group_size
        sizes = ", ".join(map(str, legal))
        raise CheckpointError(
            f"{name}: in_features {in_features} / tensor_parallel_size {tp_size} is not a multiple of "
            f"group_size {step}",
            f"tensor_parallel_size {sizes} works" if len(legal) == 1 else f"tensor_parallel_size {sizes} work",
        )


def stack_parts(parts: list[CanonicalWeight]) -> list[CanonicalWeight]:
    """Stack along the output, as few pieces as possible: neighbours that share bits, group and g_idx."""

    def alike(a: CanonicalWeight, b: CanonicalWeight) -> bool:
        if (a.bits, a.group_size, a.kind) != (b.bits, b.group_size, b.kind):
            return False
        if a.dim > 1 and not torch.equal(a.table, b.table):  # type: ignore[arg-type]
            return False
        if a.g_idx is None or b.g_idx is None:
            return a.g_idx is b.g_idx
        return torch.equal(a.g_idx, b.g_idx)

    runs: list[list[CanonicalWeight]] = []
    for part in parts:
        if runs and alike(runs[-1][0], part):
            runs[-1].append(part)
        else:
            runs.append([part])
    return [stack_rows(run) for run in runs]


class VqpLinearMethod(layers.LinearMethodBase):
    """Linear method of one layer.

    Args:
        scheme: how the layer's weights are quantized (the same for all of its parts).
        name: the layer's name, for messages.
    """

    def __init__(self, scheme: StoredScheme, name: str) -> None:
        self.scheme = scheme
        self.name = name

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
        plan = plan_shards(layer, input_size, input_size_per_partition, output_size)
        if plan.splits_columns:
            check_columns(self.name, self.scheme, input_size, layer.tp_size)
        specs = get_format(self.scheme).tensors(self.scheme, sum(p.rows for p in plan.parts), input_size)
        leaves = list(specs)
        by_part = [(part.shard_id, leaf) for part in plan.parts for leaf in leaves]
        fused_on_disk = [(None, leaf) for leaf in leaves]
        device, dtype = torch.empty(0).device, params_dtype
        staging = Staging([by_part, fused_on_disk], lambda: self._convert(layer, plan, staging, device, dtype))
        for leaf, spec in specs.items():
            layer.register_parameter(leaf, placeholder(self._loader(staging, leaf), spec.dtypes))
        layer.vqp_staging = staging
        layer.vqp_leaves = leaves

    @staticmethod
    def _loader(staging: Staging, leaf: str) -> Callable[..., None]:
        def load(param: torch.nn.Parameter, loaded_weight: torch.Tensor, shard_id: ShardId = None) -> None:
            staging.put(shard_id, leaf, loaded_weight)

        return load

    def _convert(self, layer: Any, plan: ShardPlan, staging: Staging, device: torch.device, dtype: torch.dtype) -> None:
        pieces: list[CanonicalWeight] = []
        activation: dict[str, torch.Tensor] = {}
        for shard_id, parts in self._loaded_matrices(plan, staging):
            tensors = {leaf: t.to(device) for leaf, t in staging.tensors(shard_id).items()}
            rows, columns = sum(p.rows for p in parts), plan.in_features
            module = self.name if shard_id is None else f"{self.name}[{shard_id}]"
            layout = get_format(self.scheme)
            layout.validate(module, tensors, self.scheme, rows, columns)
            matrix = layout.unpack(tensors, self.scheme, rows, columns)
            offset = 0
            for part in parts:
                piece = matrix.rows(offset + part.start, offset + part.stop)
                piece = piece.columns(plan.column_start, plan.column_stop)
                pieces.append(piece.pad_rows(part.pad_to))
                offset += part.rows
            merge_static_activation(activation, tensors)
        layer.vqp_kernel = PackedLinear.build(stack_parts(pieces), self.scheme, activation, device, dtype)

    def _loaded_matrices(self, plan: ShardPlan, staging: Staging) -> list[tuple[ShardId, list[Part]]]:
        """What came from the checkpoint, in the order of the plan: (shard id, the parts it holds)."""
        if staging.tensors(None) and len(plan.parts) > 1:
            return [(None, list(plan.parts))]
        by_id = {part.shard_id: part for part in plan.parts}
        found: list[tuple[ShardId, list[Part]]] = []
        covered: set[ShardId] = set()
        for key in staging.parts():
            if isinstance(key, tuple):
                found.append((key, [by_id[i] for i in key]))
                covered.update(key)
        found += [(part.shard_id, [part]) for part in plan.parts if part.shard_id not in covered]
        order = {part.shard_id: i for i, part in enumerate(plan.parts)}
        return sorted(found, key=lambda entry: order[entry[1][0].shard_id])

    def process_weights_after_loading(self, layer: Any) -> None:
        staging = getattr(layer, "vqp_staging", None)
        if staging is None:
            return
        if staging.empty and uses_dummy_weights():
            fill_with_dummies(staging, self.scheme, self._plan_of(layer))
        staging.finish()
        for leaf in layer.vqp_leaves:
            delattr(layer, leaf)
        del layer.vqp_staging, layer.vqp_leaves
        layer.vqp_kernel.register(layer)

    @staticmethod
    def _plan_of(layer: Any) -> ShardPlan:
        per_partition = getattr(layer, "input_size_per_partition", layer.input_size)
        return plan_shards(layer, layer.input_size, per_partition, layer.output_size)

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return layer.vqp_kernel(layer, x, bias)

    def tie_weights(self, layer: Any, embed_tokens: Any) -> Any:
        """An LM head that is tied to 16-bit embeddings is 16-bit, whatever the config's default says."""
        for leaf in layer.vqp_leaves:
            delattr(layer, leaf)
        del layer.vqp_staging, layer.vqp_leaves
        layer.quant_method = layers.UnquantizedEmbeddingMethod()
        layer.weight = embed_tokens.weight
        return layer

    def dequantize_weight(self, layer: Any) -> torch.Tensor:
        """This rank's (N, K) weight in float32."""
        return layer.vqp_kernel.dequantize(layer)


def merge_static_activation(into: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor]) -> None:
    """Collect static activation parameters of fused parts: one input, so one range that covers all of them.

    A symmetric scale is the largest; with zero points the ranges are joined (as vLLM's CPU
    kernel does, kernels/linear/scaled_mm/cpu.py).
    """
    scale = tensors.get("input_scale")
    if scale is None:
        return
    scale = scale.float().reshape(())
    zero = tensors.get("input_zero_point")
    zero = torch.zeros_like(scale) if zero is None else zero.float().reshape(())
    low, high = scale * (-128 - zero), scale * (127 - zero)
    symmetric_scale = scale
    if "low" in into:
        low, high = torch.minimum(into["low"], low), torch.maximum(into["high"], high)
        symmetric_scale = torch.maximum(into["scale"], scale)
    into.update(low=low, high=high, scale=symmetric_scale)


def uses_dummy_weights() -> bool:
    """Whether vLLM was asked for random weights (``--load-format dummy``)."""
    return str(compat.get_current_vllm_config().load_config.load_format) == "dummy"


def fill_with_dummies(staging: Staging, scheme: StoredScheme, plan: ShardPlan) -> None:
    """Small random weights in the layer's own format, for benchmarks without a checkpoint."""
    generator = torch.Generator().manual_seed(0)
    layout = get_format(scheme)
    for part in plan.parts:
        for leaf, tensor in dummy_tensors(layout, scheme, part.rows, plan.in_features, generator).items():
            staging.put(part.shard_id, leaf, tensor)


def dummy_tensors(
    layout: Any, scheme: StoredScheme, n: int, k: int, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Tensors of a random (n, k) module, as ``layout`` stores them."""
    groups = scheme.groups(k)
    codes = torch.randint(0, 1 << scheme.bits, (n, k), dtype=torch.uint8, generator=generator)
    if not scheme.is_int:
        codes &= 0xBF  # magnitude below 2: never NaN
    scales = torch.full((n, groups), 0.01 / (1 << scheme.bits))
    zeros = None if scheme.symmetric or not scheme.is_int else torch.full((n, groups), 1 << (scheme.bits - 1))
    g_idx = (torch.arange(k) // scheme.group_of(k)).int() if scheme.act_order else None
    weight = CanonicalWeight(codes, scales, scheme.bits, scheme.group_of(k), zeros, kind_of(scheme.value), g_idx)
    tensors = layout.pack(weight, scheme)
    if scheme.activation is not None and not scheme.activation.dynamic:
        tensors["input_scale"] = torch.tensor(0.05)
    return tensors
