"""Experts of a mixture: two matrices per expert, loaded as those of linear layers are, and the routing around them.

    w13 = stack(gate (w1), up (w3))    (2I, H)
    w2  = down                         (H, I)

On a GPU vLLM's own fused kernels take them (adapter/experts.py), or, with the CUDA kernels switched on, the experts of
a matrix become one stack (cuda_experts.py). Else, and on a CPU, each expert is two packed linear layers.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch

from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.cuda.weight import PackedCuda
from vllm_quant_plugin import compat_layers as layers
from vllm_quant_plugin.adapter import experts
from vllm_quant_plugin.compat import current_platform
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.loader.matrix import HandOver, MatrixLoader
from vllm_quant_plugin.loader.placeholder import Load, Placeholders
from vllm_quant_plugin.loader.shards import check_columns, plan_experts
from vllm_quant_plugin.loader.static_range import StaticRange
from vllm_quant_plugin.methods.cuda_experts import ExpertStack, pack_for_stack, run_experts
from vllm_quant_plugin.methods.kernel import PackedLinear
from vllm_quant_plugin.schemes import StoredScheme

# A matrix of one expert of this rank: ("w13" or "w2", the expert's number on this rank).
ExpertMatrix = tuple[str, int]


def on_gpu(device: torch.device) -> bool:
    """Whether vLLM's kernels for NVIDIA GPUs are at hand."""
    return device.type == "cuda" and bool(current_platform.is_cuda())


class VqpMoEMethod(layers.FusedMoEMethodBase):
    """Experts method of one layer: routes each token to its experts' quantized matrices.

    Args:
        scheme: of all experts' gate, up and down projections.
        moe: vLLM's MoE configuration.
        name: the layer's name, for messages.
    """

    def __init__(self, scheme: StoredScheme, moe: Any, name: str) -> None:
        super().__init__(moe)
        self.scheme = scheme
        self.name = name
        self.gated = bool(moe.is_act_and_mul)
        self._placeholders = Placeholders()
        self._matrices: dict[ExpertMatrix, MatrixLoader] = {}
        self._loaded = False
        self._for_stacks: dict[ExpertMatrix, list[PackedCuda]] = {}
        self._stacks: dict[str, ExpertStack] = {}
        self._packed: dict[ExpertMatrix, PackedLinear] = {}
        self._canonical: dict[ExpertMatrix, tuple[list[CanonicalWeight], StaticRange]] = {}

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
            raise CheckpointError(
                f"{self.name}: experts with biases are not supported",
                "list experts in modules_to_not_convert, or serve the model with in-tree vLLM",
            )
        rank, size = self.moe.tp_rank, self.moe.tp_size
        intermediate = intermediate_size_per_partition * size
        check_columns(f"{self.name}.w2", self.scheme, intermediate, size)
        device = torch.empty(0).device
        self._sizes = experts.Sizes(num_experts, hidden_size, intermediate_size_per_partition)
        self._device, self._dtype = device, params_dtype
        for matrix, plan in plan_experts(hidden_size, intermediate, rank, size, gated=self.gated).items():
            for expert in range(num_experts):
                pack = self._packer((matrix, expert), weakref.ref(layer), device, params_dtype)
                loader = MatrixLoader(f"{self.name}.{expert}", self.scheme, plan, pack)
                self._matrices[matrix, expert] = loader
            self._placeholders.register(
                layer, loader.specs, self.scheme.bits, self._loaders(layer, matrix), prefix=f"{matrix}_"
            )
            if self.scheme.block:
                for leaf in ("weight_scale", "weight_scale_inv"):
                    if leaf in loader.specs:
                        # Block scales of experts in one tensor are transposed as the weights are.
                        getattr(layer, f"{matrix}_{leaf}").quant_method = "block"

    def _packer(
        self, key: ExpertMatrix, layer_of: Callable[[], Any], device: torch.device, dtype: torch.dtype
    ) -> HandOver:
        def pack(pieces: list[CanonicalWeight], static: StaticRange) -> None:
            if self._placeholders.requantized(layer_of()):
                self._canonical[key] = pieces, static
                return
            for_stack = pack_for_stack(pieces, self.scheme, device, dtype)
            if for_stack is not None:
                self._for_stacks[key] = for_stack
            elif on_gpu(device):
                self._canonical[key] = pieces, static
            else:
                self._packed[key] = PackedLinear.build(pieces, self.scheme, static, device, dtype)

        return pack

    def _loaders(self, layer: Any, matrix: str) -> Callable[[str], Load]:
        """The weight loader of each tensor of ``matrix``, by the tensor's name."""
        # vLLM keeps placeholders in a table for as long as their layer lives: they must not keep it alive.
        layer_of: Callable[[], Any] = weakref.ref(layer)

        def loader_of(leaf: str) -> Load:
            def load(
                param: torch.nn.Parameter,
                loaded_weight: torch.Tensor,
                weight_name: str,
                shard_id: str,
                expert_id: int,
                return_success: bool = False,
            ) -> bool | None:
                if loaded_weight.dim() == 3:  # no tensor of one expert has three dimensions
                    self._put_stack(matrix, shard_id, leaf, loaded_weight)
                    return True if return_success else None
                local = layer_of()._map_global_expert_id_to_local_expert_id(expert_id)
                if local != -1:
                    self._matrices[matrix, local].put(shard_id, leaf, loaded_weight)
                return local != -1 if return_success else None

            return load

        return loader_of

    def _put_stack(self, matrix: str, shard_id: str, leaf: str, stack: torch.Tensor) -> None:
        """Tensors of all experts of this rank as one (E, ., .), as Llama 4's model file hands them over."""
        count = sum(name == matrix for name, _ in self._matrices)
        if len(stack) != count:
            raise CheckpointError(
                f"{self.name}: a tensor of {len(stack)} experts, where this rank has {count}",
                "config.json and weights do not belong together",
            )
        for expert, tensor in enumerate(stack):
            self._matrices[matrix, expert].put(shard_id, leaf, tensor)

    def process_weights_after_loading(self, layer: Any) -> None:
        if self._loaded:
            return
        for loader in self._matrices.values():
            loader.close()
        self._loaded = True
        self._placeholders.remove(layer)
        if self._canonical and self._hand_over(layer):
            return
        for (matrix, expert), packed in sorted(self._packed.items()):
            packed.register(layer, f"{matrix}_packed_{expert}")
        for matrix in sorted({matrix for matrix, _ in self._for_stacks}):
            stack = [self._for_stacks[key] for key in sorted(self._for_stacks) if key[0] == matrix]
            self._stacks[matrix] = ExpertStack(stack)
            self._stacks[matrix].register(layer, f"{matrix}_packed")
        self._for_stacks.clear()

    def _hand_over(self, layer: Any) -> bool:
        """Whether vLLM's own method serves the layer from now on; else each expert is packed for itself."""
        weights = {key: pieces for key, (pieces, _) in self._canonical.items()}
        method = None
        if on_gpu(self._device):
            method = experts.take_over(layer, weights, self.scheme.weight, self.moe, self._sizes, self._dtype)
        if method is None:
            for key, (pieces, static) in self._canonical.items():
                self._packed[key] = PackedLinear.build(pieces, self.scheme, static, self._device, self._dtype)
        else:
            layer.quant_method = method
        self._canonical.clear()
        return method is not None

    def dequantize_weight(self, layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """w13 (E, 2 I, H) and w2 (E, H, I) of this rank in the dtype of the activations, for vLLM to quantize again.

        vLLM asks for them instead of calling ``process_weights_after_loading``; the parameters are released.

        Raises:
            CheckpointError: the weights are packed already.
        """
        if self._loaded:
            raise CheckpointError(f"{self.name}: the experts are packed already", "start the server again")
        for loader in self._matrices.values():
            loader.close()
        self._loaded = True
        self._placeholders.remove(layer)
        stacks = []
        for matrix in ("w13", "w2"):
            keys = sorted(key for key in self._canonical if key[0] == matrix)
            dense = [torch.cat([w.dequantize().to(self._dtype) for w in self._canonical[key][0]]) for key in keys]
            stacks.append(torch.stack(dense))
        self._canonical.clear()
        return stacks[0], stacks[1]

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
        if self._stacks:
            w13, w2 = self._stacks["w13"], self._stacks["w2"]
            return run_experts(layer, w13, w2, x, topk_weights, topk_ids, gated=self.gated)
        if layer.expert_map is not None:
            # -1, no expert chosen, stays that: as an index it would be the last one.
            topk_ids = torch.where(topk_ids < 0, -1, layer.expert_map[topk_ids.clamp(min=0).long()])
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        gather = x.device.type == "cpu"
        for expert in range(len(self._packed) // 2):
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

    def _expert(self, layer: Any, expert: int, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """float32 (M, H): one expert's output, weighted by its router weight (M, 1)."""
        if layer.apply_router_weight_on_input:
            x = (x.float() * weight).to(x.dtype)
        gate_up = self._packed["w13", expert](layer, x)
        width = gate_up.shape[-1] // (2 if self.gated else 1)
        hidden = torch.empty(*gate_up.shape[:-1], width, dtype=gate_up.dtype, device=gate_up.device)
        layers.apply_moe_activation(layer.activation, hidden, gate_up)
        out = self._packed["w2", expert](layer, hidden).float()
        return out if layer.apply_router_weight_on_input else out * weight
