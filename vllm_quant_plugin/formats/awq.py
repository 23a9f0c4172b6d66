"""AutoAWQ's "gemm" layout (casper-hansen/AutoAWQ, awq/modules/linear/gemm.py).

    qweight  int32 (K, N * bits / 32)   output features packed along N, interleaved
    qzeros   int32 (G, N * bits / 32)   likewise; may be absent when zero_point is false
    scales   fp16  (G, N)

Within a word the fields hold the even output features first, then the odd ones: for 4 bits
0 2 4 6 1 3 5 7 from the low bits up; for 8 bits 0 2 1 3 (vLLM's ``awq_pack``), and 2 bits in
the same manner. 3 bits do not fill a 32-bit word, so this layout has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from vllm_quant_kernels.scheme import Int, WeightScheme
from vllm_quant_plugin.errors import CheckpointError, UsageError
from vllm_quant_plugin.formats.base import (
    FLOATS,
    WORD,
    Format,
    Headers,
    Kind,
    Provenance,
    ShardStep,
    TensorSpec,
    canonical_step,
    check_group,
    mixed_precision_kernel,
    per_channel,
    refuse_unless_weight_only_int,
)
from vllm_quant_plugin.formats.dynamic import dynamic_rules
from vllm_quant_plugin.formats.fields import PACK_DTYPE, Enumeration, Fields, check_bits, check_group_size
from vllm_quant_plugin.formats.host import Host
from vllm_quant_plugin.schemes import ModelScheme, Rule, Storage, StoredScheme
from vllm_quant_plugin.side_config import AWQ_FILES

if TYPE_CHECKING:
    import torch

    from vllm_quant_kernels.canonical import CanonicalWeight
    from vllm_quant_plugin.formats.base import Tensors

BITS = (2, 4, 8)
STORAGE = Storage("awq")
# GPTQModel writes the name of the method as its checkpoint_format.
LAYOUT = Enumeration({"gemm": "gemm", "awq": "gemm"})
# Fused modules and kernels of AutoAWQ, and how the codes were found; desc_act too: the layout has no act-order.
_HARMLESS = (
    "quant_method", "method", "foem", "desc_act", "do_fuse", "modules_to_fuse", "fuse_max_seq_len", "exllama_config",
    "backend", "meta", "model_seqlen", "true_sequential", "damp_percent", "damp_auto_increment", "static_groups",
    "offload_to_disk", "offload_to_disk_path", "act_group_aware", "mse",
)  # fmt: skip


class AwqFormat(Format):
    name: ClassVar[str] = "awq"
    methods: ClassVar[tuple[str, ...]] = ("awq",)
    vllm_methods: ClassVar[tuple[str, ...]] = ("vqp_awq",)
    config_files: ClassVar[tuple[str, ...]] = AWQ_FILES
    leaves: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales")
    target: ClassVar[bool] = True
    mixed: ClassVar[bool] = False

    def parse(self, config: Mapping[str, Any]) -> ModelScheme:
        fields = Fields(config)
        fields.harmless(_HARMLESS)
        fields.choice("pack_dtype", of=PACK_DTYPE, default="int32", what="AWQ pack_dtype")
        fields.refuse("rotation", "rotations are not applied")
        fields.refuse("activation", "quantized activations of GPTQModel are not computed")
        bits = _check_bits(fields.integer("bits", "w_bit"))
        fields.choice("version", "checkpoint_format", "format", of=LAYOUT, default="gemm", what="AWQ layout")
        scheme = StoredScheme(
            Int(bits),
            check_group_size(fields.integer("group_size", "q_group_size")),
            symmetric=not fields.boolean("zero_point", default=not fields.boolean("sym", default=False)),
            storage=STORAGE,
        )
        rules = tuple(Rule(n, None, "contains") for n in fields.names("modules_to_not_convert"))
        rules = (*dynamic_rules(fields, scheme, _check_bits), *rules)
        lm_head = fields.boolean("lm_head", default=False)
        fields.finish()
        unseen = "AWQ with dynamic rules" if config.get("dynamic") else ""
        return ModelScheme("awq", scheme, rules, lm_head=lm_head, refused_in_tree=unseen)

    def write_config(
        self,
        schemes: Mapping[str, StoredScheme],
        common: StoredScheme,
        kept: Sequence[str],
        *,
        kv_cache: bool = False,
        provenance: Provenance | None = None,
    ) -> dict[str, Any]:
        found = set(schemes.values())
        if len(found) > 1:
            listed = ", ".join(sorted(s.describe() for s in found))
            raise UsageError(
                f"AWQ's layout has one scheme for all modules, this model has {listed}", "--to gptq has more"
            )
        if "lm_head" in schemes:
            raise UsageError(
                "lm_head is quantized, which AWQ's layout does not know", "--to gptq or compressed-tensors"
            )
        if kv_cache:
            raise UsageError(
                "the model has KV-cache scales, which AWQ's config does not know", "--to compressed-tensors"
            )
        return {
            "quant_method": "awq",
            "version": "gemm",
            "bits": common.bits,
            "group_size": common.group_size,
            "zero_point": not common.symmetric,
            "modules_to_not_convert": [name for name in kept if name != "lm_head"] or None,
        }

    def tensors(self, scheme: StoredScheme, n: int, k: int) -> dict[str, TensorSpec]:
        check_group(scheme, k, "AWQ")
        if n * scheme.bits % 32:
            raise CheckpointError(
                f"AWQ: {n} output features of {scheme.bits} bits do not fill 32-bit words",
                f"out_features must be a multiple of {32 // scheme.bits}",
            )
        words, groups = n * scheme.bits // 32, scheme.groups(k)
        return {
            "qweight": TensorSpec(((k, words),), ("int32",), output_dim=1, input_dim=0, packed_dim=1),
            "qzeros": TensorSpec(
                ((groups, words),), ("int32",), optional=scheme.symmetric, output_dim=1, input_dim=0, packed_dim=1
            ),
            "scales": TensorSpec(((groups, n),), FLOATS, output_dim=1, input_dim=0),
        }

    def holds(self, scheme: StoredScheme, headers: Headers) -> bool:
        return "qweight" in headers

    def shape(self, scheme: StoredScheme, headers: Headers) -> tuple[int, int]:
        k, words = headers["qweight"].shape
        return words * 32 // scheme.bits, k

    def scale_dtype(self, scheme: WeightScheme, model: str) -> str:
        return "float16"

    def in_tree(self, scheme: StoredScheme, host: Host) -> str | None:
        if scheme.bits != 4:
            return f"AWQ with {scheme.bits} bits (4 only)"
        if scheme.symmetric and host.device == "cuda":
            return "AWQ without zero points"
        return "AWQ on a CPU without AVX-512" if host.lacks_avx512 else None

    def experts_in_tree(self, host: Host) -> str | None:
        return "AWQ experts on a CPU" if host.device == "cpu" else None

    def in_tree_kernel(self, scheme: StoredScheme, host: Host, kind: Kind) -> str:
        return mixed_precision_kernel(host)

    def shard_step(self, scheme: StoredScheme, k: int) -> ShardStep:
        step = canonical_step(scheme)
        return replace(step, rows=32 // scheme.bits, rows_unit=WORD)

    def in_tree_bytes(self, scheme: StoredScheme, n: int, k: int, full_k: int, itemsize: int) -> int:
        words = 4 * -(-n * scheme.bits // 32)
        return k * words + scheme.groups(k) * (words + n * itemsize)

    def store(self, scheme: StoredScheme) -> StoredScheme:
        refuse_unless_weight_only_int(scheme, "awq", BITS)
        if scheme.act_order:
            raise UsageError("is act-order, which AWQ's layout does not know", "--to compressed-tensors or gptq")
        # Readers expect zero points: those of a symmetric weight are the middle code.
        return replace(scheme, storage=STORAGE, group_size=per_channel(scheme), symmetric=False)

    def unpack(self, tensors: Tensors, scheme: StoredScheme, n: int, k: int) -> CanonicalWeight:
        from vllm_quant_kernels.unpack import WordCodes
        from vllm_quant_kernels.unpack_weight import StoredWeight

        bits, zeros = scheme.bits, None
        if "qzeros" in tensors:
            qzeros = tensors["qzeros"]
            zeros = WordCodes(qzeros, "n", bits, n, qzeros.shape[0]).tensor()
        codes = WordCodes(tensors["qweight"], "n", bits, n, k)
        return StoredWeight((codes,), tensors["scales"].t().contiguous(), scheme.group_of(k), zeros)

    def pack(self, weight: CanonicalWeight, scheme: StoredScheme) -> dict[str, torch.Tensor]:
        import torch

        from vllm_quant_kernels.unpack import field_order
        from vllm_quant_plugin.formats.bits import pack_padded

        order = field_order(scheme.bits)
        tensors = {
            "qweight": pack_padded(weight.codes.t().contiguous(), scheme.bits, order),
            "scales": weight.scales.t().contiguous().half(),
        }
        if weight.zeros is not None:
            tensors["qzeros"] = pack_padded(weight.zeros.round().to(torch.uint8).t().contiguous(), scheme.bits, order)
        return tensors


def _check_bits(bits: int) -> int:
    hint = "3-bit AWQ is stored as compressed-tensors pack-quantized" if bits == 3 else ""
    return check_bits(bits, BITS, "AWQ", hint)
