"""A format from outside the package: 4-bit integers, two to a byte.

nibbles  uint8 (N, K / 2)    input feature 2 j in the low half of byte j, 2 j + 1 in the high half
steps    float (N, G)        weight = (code - 8) * step; every ``group`` input features share a step

"quantization_config": {"quant_method": "toy", "group": 32, "keep": ["lm_head"]}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vllm_quant_kernels.scheme import Int
from vllm_quant_plugin.errors import CheckpointError, UsageError
from vllm_quant_plugin.formats.base import (
    FLOATS,
    Format,
    Headers,
    Provenance,
    TensorSpec,
    check_group,
    per_channel,
    refuse_unless_weight_only_int,
)
from vllm_quant_plugin.formats.fields import Fields, check_group_size
from vllm_quant_plugin.formats.host import Host
from vllm_quant_plugin.schemes import ModelScheme, Rule, Storage, StoredScheme

if TYPE_CHECKING:
    import torch

    from vllm_quant_kernels.canonical import CanonicalWeight
    from vllm_quant_plugin.formats.base import Tensors


class ToyFormat(Format):
    name = "toy"
    methods = ("toy",)
    vllm_methods = ("vqp_toy",)
    leaves = ("nibbles", "steps")
    target = True
    mixed = False

    # ---------------------------------------------------------------------------------------- the config

    def parse(self, config: Mapping[str, Any]) -> ModelScheme:
        fields = Fields(config)
        fields.harmless(("quant_method",))
        scheme = StoredScheme(Int(4), check_group_size(fields.integer("group")), storage=Storage("toy"))
        kept = tuple(Rule(name, None, "path") for name in fields.names("keep"))
        fields.finish()
        return ModelScheme("toy", scheme, kept, lm_head=True)

    def write_config(
        self,
        schemes: Mapping[str, StoredScheme],
        common: StoredScheme,
        kept: Sequence[str],
        *,
        kv_cache: bool = False,
        provenance: Provenance | None = None,
    ) -> dict[str, Any]:
        if set(schemes.values()) - {common}:
            raise UsageError("toy has one group size for all modules", "choose another format")
        if kv_cache:
            raise UsageError("toy has no place for KV-cache scales", "choose another format")
        return {"quant_method": "toy", "group": common.group_size, "keep": list(kept)}

    # --------------------------------------------------------------------------------------- the tensors

    def tensors(self, scheme: StoredScheme, n: int, k: int) -> dict[str, TensorSpec]:
        check_group(scheme, k, "toy")
        if k % 2:
            raise CheckpointError(f"toy: {k} input features do not fill bytes", "in_features must be even")
        return {
            "nibbles": TensorSpec(((n, k // 2),), ("uint8",), output_dim=0, input_dim=1, packed_dim=1),
            "steps": TensorSpec(((n, scheme.groups(k)),), FLOATS, output_dim=0, input_dim=1),
        }

    def holds(self, scheme: StoredScheme, headers: Headers) -> bool:
        return "nibbles" in headers

    def shape(self, scheme: StoredScheme, headers: Headers) -> tuple[int, int]:
        n, half = headers["nibbles"].shape
        return n, 2 * half

    # --------------------------------------------------------------------------------------- who serves it

    def in_tree(self, scheme: StoredScheme, host: Host) -> str | None:
        return "the toy format"

    def experts_in_tree(self, host: Host) -> str | None:
        return "the toy format"

    # --------------------------------------------------------------------------------------- the weights

    def store(self, scheme: StoredScheme) -> StoredScheme:
        refuse_unless_weight_only_int(scheme, "toy", (4,))
        if scheme.act_order or not scheme.symmetric:
            raise UsageError(f"is {scheme.describe()}: toy has neither act-order nor zero points", "keep it as it is")
        return replace(scheme, storage=Storage("toy"), group_size=per_channel(scheme))

    def unpack(self, tensors: Tensors, scheme: StoredScheme, n: int, k: int) -> CanonicalWeight:
        import torch

        from vllm_quant_kernels.canonical import CanonicalWeight

        nibbles = tensors["nibbles"]
        codes = torch.stack((nibbles & 15, nibbles >> 4), dim=-1).flatten(1)
        return CanonicalWeight(codes, tensors["steps"], 4, scheme.group_of(k))

    def pack(self, weight: CanonicalWeight, scheme: StoredScheme) -> dict[str, torch.Tensor]:
        codes = weight.codes
        return {"nibbles": codes[:, ::2] | codes[:, 1::2] << 4, "steps": weight.scales.contiguous()}


FORMAT = ToyFormat()
