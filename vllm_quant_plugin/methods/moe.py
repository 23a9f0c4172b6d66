"""Experts of a mixture: the same canonical weights, one packed matrix per expert.

w13 = stack(gate (w1), up (w3))    (2I, H) per expert, rows split over TP
w2  = down                         (H, I)  per expert, columns split over TP

On a GPU with the CUDA kernels switched on, the experts of a matrix become one stack (cuda_experts.py).
"""

from __future__ import annotations

from typing import Any

import torch

from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_plugin import compat_layers as layers
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.formats import get_format
from vllm_quant_plugin.methods.cuda_experts import ExpertStack, pack_for_stack, run_experts
from vllm_quant_plugin.methods.kernel import PackedLinear
from vllm_quant_plugin.methods.linear import (
    check_columns,
    dummy_tensors,
    merge_static_activation,
    stack_parts,
    uses_dummy_weights,
)
from vllm_quant_plugin.methods.staging import Staging, placeholder
from vllm_quant_plugin.schemes import StoredScheme


class VqpMoEMethod(layers.FusedMoEMethodBase):
    """Fused-experts method: routes each token to its experts' quantized matrices.

    Args:
        scheme: of all experts' gate, up and down projections.
        moe: vLLM's MoE configuration.
        name: the layer's name, for messages.
    """

    def __init__(self, scheme: StoredScheme, moe: Any, name: str) -> None:
        super().__init__(moe)
        self.scheme = scheme
        self.name = name

    def create_weights(
        self,
        layer: Any,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        if self.moe.has_bias:
            raise CheckpointError(f"{self.name}: experts with biases are not supported", "serve it with in-tree vLLM")
        tp = self.moe.tp_size
        intermediate = intermediate_size_per_partition * tp
        check_columns(f"{self.name}.w2", self.scheme, intermediate, tp)
        layer.vqp_sizes = (hidden_size, intermediate)
        layer.vqp_experts = {}
        layer.vqp_stacks = {}
        gated = self.moe.is_act_and_mul
        layer.vqp_shards = {"w13": ("w1", "w3") if gated else ("w1",), "w2": ("w2",)}
        specs = get_format(self.scheme).tensors(self.scheme, intermediate, hidden_size)
        leaves = list(specs)
        device = torch.empty(0).device
        layer.vqp_staging = {
            (expert, matrix): self._staging(layer, expert, matrix, leaves, device, params_dtype)
            for expert in range(num_experts)
            for matrix in ("w13", "w2")
        }
        layer.vqp_leaves = [f"{matrix}_{leaf}" for matrix in ("w13", "w2") for leaf in leaves]
        for matrix in ("w13", "w2"):
            for leaf, spec in specs.items():
                parameter = placeholder(self._loader(layer, matrix, leaf), spec.dtypes)
                layer.register_parameter(f"{matrix}_{leaf}", parameter)

    def _staging(
        self, layer: Any, expert: int, matrix: str, leaves: list[str], device: torch.device, dtype: torch.dtype
    ) -> Staging:
        expected = [(shard, leaf) for shard in layer.vqp_shards[matrix] for leaf in leaves]
        staging = Staging([expected], lambda: self._convert(layer, expert, matrix, staging, device, dtype))
        return staging

    @staticmethod
    def _loader(layer: Any, matrix: str, leaf: str) -> Any:
        def load(
            param: torch.nn.Parameter,
            loaded_weight: torch.Tensor,
            weight_name: str,
            shard_id: str,
            expert_id: int,
            return_success: bool = False,
        ) -> bool | None:
            local = layer._map_global_expert_id_to_local_expert_id(expert_id)
            if local != -1:
                layer.vqp_staging[(local, matrix)].put(shard_id, leaf, loaded_weight)
            return local != -1 if return_success else None

        return load

    def _convert(
        self, layer: Any, expert: int, matrix: str, staging: Staging, device: torch.device, dtype: torch.dtype
    ) -> None:
        hidden, intermediate = layer.vqp_sizes
        rank, tp = self.moe.tp_rank, self.moe.tp_size
        share = intermediate // tp
        begin, end = rank * share, (rank + 1) * share
        layout = get_format(self.scheme)
        pieces: list[CanonicalWeight] = []
        static: dict[str, torch.Tensor] = {}
        for shard in layer.vqp_shards[matrix]:
            tensors = {leaf: t.to(device) for leaf, t in staging.tensors(shard).items()}
            n, k = (hidden, intermediate) if matrix == "w2" else (intermediate, hidden)
            layout.validate(f"{self.name}.{expert}.{shard}", tensors, self.scheme, n, k)
            weight = layout.unpack(tensors, self.scheme, n, k)
            pieces.append(weight.columns(begin, end) if matrix == "w2" else weight.rows(begin, end))
            merge_static_activation(static, tensors)
        parts = stack_parts(pieces)
        packed = pack_for_stack(parts, self.scheme, device, dtype)
        if packed is not None:
            layer.vqp_stacks.setdefault(matrix, {})[expert] = packed
        else:
            layer.vqp_experts[(expert, matrix)] = PackedLinear.build(parts, self.scheme, static, device, dtype)

    def process_weights_after_loading(self, layer: Any) -> None:
        if not hasattr(layer, "vqp_staging"):
            return
        dummy = uses_dummy_weights()
        hidden, intermediate = layer.vqp_sizes
        for (_, matrix), staging in layer.vqp_staging.items():
            if staging.empty and dummy and not staging.done:
                n, k = (hidden, intermediate) if matrix == "w2" else (intermediate, hidden)
                generator = torch.Generator().manual_seed(0)
                for shard in layer.vqp_shards[matrix]:
                    for leaf, tensor in dummy_tensors(get_format(self.scheme), self.scheme, n, k, generator).items():
                        staging.put(shard, leaf, tensor)
            staging.finish()
        for name in layer.vqp_leaves:
            delattr(layer, name)
        del layer.vqp_staging, layer.vqp_leaves
        for (expert, matrix), packed in sorted(layer.vqp_experts.items()):
            packed.register(layer, f"{matrix}_packed_{expert}")
        for matrix, experts in layer.vqp_stacks.items():
            layer.vqp_stacks[matrix] = stack = ExpertStack([experts[e] for e in sorted(experts)])
            stack.register(layer, f"{matrix}_packed")

    def get_fused_moe_quant_config(self, layer: Any) -> Any:
        """None: the experts do not go through vLLM's modular kernels."""
        return None

    def apply(
        self,
        layer: Any,
        x: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        shared_experts: Any,
        shared_experts_input: torch.Tensor | None,
    ) -> torch.Tensor:
        """x (M, H); topk_weights and topk_ids (M, top_k), ids global, -1 for none. Returns (M, H)."""
        if layer.vqp_stacks:
            stacks = layer.vqp_stacks
            return run_experts(layer, stacks["w13"], stacks["w2"], x, topk_weights, topk_ids)
        if layer.expert_map is not None:
            # -1, no expert chosen, stays that: as an index it would be the last one.
            topk_ids = torch.where(topk_ids < 0, -1, layer.expert_map[topk_ids.clamp(min=0).long()])
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        gather = x.device.type == "cpu"
        for expert in range(len(layer.vqp_experts) // 2):
            chosen = topk_ids == expert
            if gather:
                tokens, slot = chosen.nonzero(as_tuple=True)
                if not len(tokens):
                    continue
                weight = topk_weights[tokens, slot].float().unsqueeze(1)
                out.index_add_(0, tokens, self._expert(layer, expert, x[tokens], weight))
            else:
                # Every token through every expert: no data-dependent shapes, so CUDA graphs can record it.
                weight = (topk_weights.float() * chosen).sum(dim=1, keepdim=True)
                out += self._expert(layer, expert, x, weight) * chosen.any(dim=1, keepdim=True)
        return out.to(x.dtype)

    @staticmethod
    def _expert(layer: Any, expert: int, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """float32 (M, H): one expert's output, weighted by its router weight (M, 1)."""
        if layer.apply_router_weight_on_input:
            x = (x.float() * weight).to(x.dtype)
        w13, w2 = layer.vqp_experts[(expert, "w13")], layer.vqp_experts[(expert, "w2")]
        gate_up = w13(layer, x)
        width = gate_up.shape[-1] // len(layer.vqp_shards["w13"])
        hidden = torch.empty(*gate_up.shape[:-1], width, dtype=gate_up.dtype, device=gate_up.device)
        layers.apply_moe_activation(layer.activation, hidden, gate_up)
        out = w2(layer, hidden).float()
        return out if layer.apply_router_weight_on_input else out * weight
