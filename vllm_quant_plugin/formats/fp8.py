"""FP8 checkpoints with ``quant_method: fp8``: per tensor, or 128x128 blocks (DeepSeek).

weight            float8_e4m3fn (N, K)
weight_scale      fp32 scalar, (1,) or one per fused part        per tensor
weight_scale_inv  fp32 (ceil(N / bn), ceil(K / bk))              per block; multiplies, despite its name
input_scale       fp32 scalar or (1,)                            static activations

transformers writes ``weight_scale_inv`` for a scale per tensor as well, and ``activation_scale`` for ``input_scale``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from vllm_quant_kernels.scheme import E4M3, E5M2, PER_TENSOR, ActivationScheme, Float, WeightScheme
from vllm_quant_plugin.errors import UsageError
from vllm_quant_plugin.formats.base import FLOATS, Format, Headers, Kind, Provenance, TensorSpec
from vllm_quant_plugin.formats.eight_bit import (
    FP8_DTYPE,
    block_rows,
    eight_bit_bytes,
    eight_bit_step,
    fp8_blocks_on_cpu,
    fp8_in_tree,
    holds_eight_bit,
    input_scale,
    static_input_bytes,
    weight_shape,
)
from vllm_quant_plugin.formats.fields import Enumeration, Fields, check_block
from vllm_quant_plugin.formats.host import Host
from vllm_quant_plugin.formats.kv_cache import kv_cache_of
from vllm_quant_plugin.schemes import ModelScheme, Rule, Storage, StoredScheme

if TYPE_CHECKING:
    import torch

    from vllm_quant_kernels.canonical import CanonicalWeight
    from vllm_quant_plugin.formats.base import ShardStep, Tensors

STORAGE = Storage("fp8")
FLOAT_TYPE = Enumeration(
    {"e4m3": "e4m3", "float8_e4m3fn": "e4m3", "e4m3fn": "e4m3", "e5m2": "e5m2", "float8_e5m2": "e5m2"}
)
# "ue8m0" says that scales are powers of two: they are stored as the floats that they are all the same.
SCALE_FORMAT = Enumeration({"float": "float", "ue8m0": "ue8m0"}, exact=True)
ACTIVATION_SCHEME = Enumeration({"dynamic": "dynamic", "static": "static"})
_LEAST_BLOCK = 32


class Fp8Format(Format):
    name: ClassVar[str] = "fp8"
    methods: ClassVar[tuple[str, ...]] = ("fp8",)
    vllm_methods: ClassVar[tuple[str, ...]] = ("vqp_fp8",)
    leaves: ClassVar[tuple[str, ...]] = (
        "weight", "weight_scale", "weight_scale_inv", "input_scale", "activation_scale"
    )  # fmt: skip

    def parse(self, config: Mapping[str, Any]) -> ModelScheme:
        fields = Fields(config)
        fields.harmless(("quant_method", "dequantize", "is_checkpoint_fp8_serialized"))
        fields.refuse("modules_to_convert", "a list of what is quantized is not read", "list modules_to_not_convert")
        fields.choice("scale_fmt", of=SCALE_FORMAT, default="float")
        block = fields.get("weight_block_size")
        block = None if block is None else check_block(block)
        dynamic = fields.choice("activation_scheme", of=ACTIVATION_SCHEME, default="dynamic")
        value: Float = E5M2 if fields.choice("fmt", of=FLOAT_TYPE, default="e4m3") == "e5m2" else E4M3
        if block:
            activation = ActivationScheme(value, strategy="group", dynamic=True, group_size=block[1])
        elif dynamic == "dynamic":
            activation = ActivationScheme(value)
        else:
            activation = ActivationScheme(value, strategy="tensor", dynamic=False)
        scheme = StoredScheme(
            value, block[1] if block else PER_TENSOR, block=block, activation=activation, storage=STORAGE
        )
        rules = tuple(Rule(n, None, "path") for n in fields.names("ignored_layers", "modules_to_not_convert"))
        kv_cache = kv_cache_of(fields)
        fields.finish()
        known = config.get("activation_scheme")
        unread = "" if known in ("dynamic", "static") else f"an FP8 config with activation_scheme {known!r}"
        return ModelScheme("fp8", scheme, rules, kv_cache=kv_cache, refused_in_tree=unread)

    def write_config(
        self,
        schemes: Mapping[str, StoredScheme],
        common: StoredScheme,
        kept: Sequence[str],
        *,
        kv_cache: bool = False,
        provenance: Provenance | None = None,
    ) -> dict[str, Any]:
        if len(set(schemes.values())) > 1:
            raise UsageError("an fp8 config has one scheme for all modules", "--to compressed-tensors holds several")
        block = {"weight_block_size": list(common.block)} if common.block else {}
        return {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "static" if common.activation and not common.activation.dynamic else "dynamic",
            "ignored_layers": list(kept),
            "modules_to_not_convert": list(kept),
            **block,
        }

    def tensors(self, scheme: StoredScheme, n: int, k: int) -> dict[str, TensorSpec]:
        assert isinstance(scheme.value, Float)
        found = {
            "weight": TensorSpec(((n, k),), (FP8_DTYPE[scheme.value],), output_dim=0, input_dim=1),
            "input_scale": input_scale(scheme),
        }
        if scheme.block:
            blocks = (-(-n // scheme.block[0]), -(-k // scheme.block[1]))
            found["weight_scale_inv"] = TensorSpec((blocks,), FLOATS, output_dim=0, input_dim=1)
        else:
            found["weight_scale"] = TensorSpec(((), (1,)), FLOATS)
        return found

    def holds(self, scheme: StoredScheme, headers: Headers) -> bool:
        return holds_eight_bit(headers)

    def leaf(self, scheme: StoredScheme, name: str) -> str:
        """transformers' names (Mistral, Devstral): its scale per tensor is called as that of blocks is."""
        if name == "weight_scale_inv" and not scheme.block:
            return "weight_scale"
        return "input_scale" if name == "activation_scale" else name

    def shape(self, scheme: StoredScheme, headers: Headers) -> tuple[int, int]:
        return weight_shape(headers)

    def scale_dtype(self, scheme: WeightScheme, model: str) -> str:
        return "float32"

    def in_tree(self, scheme: StoredScheme, host: Host) -> str | None:
        if host.device == "cpu" and not scheme.block:
            return "FP8 checkpoints with a scale per tensor on a CPU"
        return fp8_in_tree(scheme, host)

    def refused_in_tree(self, scheme: StoredScheme, host: Host, kind: Kind, n: int = 0, k: int = 0) -> str | None:
        if kind == "experts" and host.device == "cpu" and scheme.block:
            return fp8_blocks_on_cpu(scheme.block, host, experts=True)
        return super().refused_in_tree(scheme, host, kind, n, k) or ("an FP8 lm_head" if kind == "lm_head" else None)

    def shard_step(self, scheme: StoredScheme, k: int) -> ShardStep:
        # vLLM lets the parts of a fused module end within a block (LinearBase._maybe_allow_fp8_block_shape_mismatch).
        return replace(eight_bit_step(scheme), fused_rows=1)

    def in_tree_bytes(self, scheme: StoredScheme, n: int, k: int, full_k: int, itemsize: int) -> int:
        return eight_bit_bytes(scheme, n, k, full_k)

    def module_bytes(self, scheme: StoredScheme, *, expert: bool = False) -> int:
        return static_input_bytes(scheme) if expert else 0

    def expert_scheme(self, scheme: StoredScheme, inner: int, hidden: int) -> StoredScheme:
        """vLLM refines blocks that the ranks' features cut, down to 32 (``refine_fp8_moe_block_shape``)."""
        if scheme.block is None or (inner % scheme.block[0] == 0 and inner % scheme.block[1] == 0):
            return scheme
        step = math.gcd(*scheme.block, inner, hidden)
        return scheme if step < _LEAST_BLOCK else replace(scheme, block=(step, step), group_size=step)

    def attention_bytes(self, itemsize: int, scale: int) -> int:
        """Scales of q, k, v and the attention weights, in the model's dtype."""
        return 4 * itemsize

    def unpack(self, tensors: Tensors, scheme: StoredScheme, n: int, k: int) -> CanonicalWeight:
        import torch

        from vllm_quant_kernels.canonical import CanonicalWeight, kind_of

        if scheme.block:
            scales = block_rows(tensors["weight_scale_inv"].float(), scheme.block[0], n)
            group = scheme.block[1]
        else:
            scales, group = tensors["weight_scale"].float().reshape(1, 1).expand(n, 1).contiguous(), k
        codes = tensors["weight"].contiguous().view(torch.uint8)
        return CanonicalWeight(codes, scales, 8, group, kind=kind_of(scheme.value))

    def pack(self, weight: CanonicalWeight, scheme: StoredScheme) -> dict[str, torch.Tensor]:
        from vllm_quant_kernels.canonical import FP8_DTYPES, kind_of

        tensors = {"weight": weight.codes.view(FP8_DTYPES[kind_of(scheme.value)])}
        if scheme.block:
            tensors["weight_scale_inv"] = weight.scales.float()[:: scheme.block[0]].contiguous()
        else:
            tensors["weight_scale"] = weight.scales.float()[0, 0].clone()
        return tensors
