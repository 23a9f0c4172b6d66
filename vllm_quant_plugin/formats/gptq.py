"""AutoGPTQ's and GPTQModel's layout, zero conventions v1 and v2.

    qweight  int32 (K * bits / 32, N)   input features packed along K, dense (3-bit fields cross words)
    qzeros   int32 (G, N * bits / 32)   packed along N; v1 stores zero - 1, v2 the zero itself
    scales   fp16  (G, N)
    g_idx    int32 (K,)                 group of each input feature; meaningful with act-order

v1's "minus one" was subtracted from whole packed words for 2, 4 and 8 bits (GPTQModel,
utils/model.py ``convert_gptq_v2_to_v1_format_module``), so a zero of 0 borrows from its
neighbour; adding to the word undoes exactly that. For 3 bits it is done per field, modulo 8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from vllm_quant_kernels.scheme import PER_CHANNEL, Int, WeightScheme
from vllm_quant_plugin.errors import CheckpointError, UsageError
from vllm_quant_plugin.formats.base import (
    FLOATS,
    INDICES,
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
from vllm_quant_plugin.formats.fused import fused_pattern
from vllm_quant_plugin.formats.host import Host
from vllm_quant_plugin.formats.words import dense_words
from vllm_quant_plugin.schemes import ModelScheme, Rule, Storage, StoredScheme
from vllm_quant_plugin.side_config import GPTQ_FILES

if TYPE_CHECKING:
    import torch

    from vllm_quant_kernels.canonical import CanonicalWeight
    from vllm_quant_plugin.formats.base import Tensors

BITS = (2, 3, 4, 8)
LAYOUT = Enumeration({"gptq": "gptq", "gptq_v2": "gptq_v2"})
# How the codes were found and how other libraries run them.
_HARMLESS = (
    "quant_method", "method", "foem", "damp_percent", "damp_auto_increment", "static_groups", "true_sequential", "meta",
    "model_name_or_path", "model_file_base_name", "model_seqlen", "dataset", "tokenizer", "block_name_to_quantize",
    "module_name_preceding_first_block", "batch_size", "pad_token_id", "use_exllama", "disable_exllama",
    "exllama_config", "max_input_length", "use_cuda_fp16", "cache_block_outputs", "backend", "act_group_aware", "mse",
    "hessian", "process", "offload_to_disk", "offload_to_disk_path", "device", "pack_impl", "gc_mode", "fail_safe",
    "failsafe", "fallback", "gptaq", "v2", "v2_alpha", "parallel_packing", "wait_for_submodule_finalizers",
    "auto_forward_data_parallelism", "vram_strategy", "moe",
)  # fmt: skip


# v1 keeps zero points minus one, v2 as they are.
GPTQ_V1, GPTQ_V2 = (Storage.of("gptq", zero_offset=offset) for offset in (1, 0))


class GptqFormat(Format):
    name: ClassVar[str] = "gptq"
    methods: ClassVar[tuple[str, ...]] = ("gptq",)
    vllm_methods: ClassVar[tuple[str, ...]] = ("vqp_gptq",)
    config_files: ClassVar[tuple[str, ...]] = GPTQ_FILES
    leaves: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales", "g_idx")
    target: ClassVar[bool] = True
    keeps_layout: ClassVar[bool] = True

    def parse(self, config: Mapping[str, Any]) -> ModelScheme:
        fields = Fields(config)
        fields.harmless(_HARMLESS)
        layout = fields.choice("checkpoint_format", "format", of=LAYOUT, default="gptq", what="GPTQ layout")
        fields.choice("pack_dtype", of=PACK_DTYPE, default="int32", what="GPTQ pack_dtype")
        fields.refuse("is_marlin_format", "Marlin's own layout is not read", "use the checkpoint it was made from")
        fields.refuse("rotation", "rotations are not applied")
        fields.refuse("adapter", "adapters are not applied")
        fields.refuse("activation", "quantized activations of GPTQModel are not computed")
        scheme = StoredScheme(
            Int(_check_bits(fields.integer("bits"))),
            check_group_size(fields.integer("group_size")),
            symmetric=fields.boolean("sym", default=True),
            act_order=fields.boolean("desc_act", default=False),
            storage=GPTQ_V2 if layout == "gptq_v2" else GPTQ_V1,
        )
        rules = dynamic_rules(fields, scheme, _check_bits)
        rules += tuple(Rule(n, None, "contains") for n in fields.names("modules_to_not_convert"))
        default: StoredScheme | None = scheme
        only = fields.names("modules_in_block_to_quantize")
        if only:
            rules += tuple(Rule(n, scheme, "path") for n in only)
            default = None
        lm_head = fields.boolean("lm_head", default=False)
        fields.finish()
        missing = [name for name in ("desc_act", "sym") if name not in config]
        unread = f"a GPTQ config without {' and '.join(missing)}" if missing else ""
        return ModelScheme("gptq", default, rules, lm_head=lm_head, refused_in_tree=unread)

    def write_config(
        self,
        schemes: Mapping[str, StoredScheme],
        common: StoredScheme,
        kept: Sequence[str],
        *,
        kv_cache: bool = False,
        provenance: Provenance | None = None,
    ) -> dict[str, Any]:
        offsets = {s.storage["zero_offset"] for s in schemes.values()}
        if len(offsets) > 1:
            raise UsageError(
                "symmetric and asymmetric modules cannot share a GPTQ checkpoint", "--to compressed-tensors holds both"
            )
        if kv_cache:
            raise UsageError(
                "the model has KV-cache scales, which GPTQ's config does not know", "--to compressed-tensors"
            )
        found: dict[str, Any] = {
            "quant_method": "gptq",
            "checkpoint_format": "gptq" if common.storage["zero_offset"] else "gptq_v2",
            "bits": common.bits,
            "group_size": common.group_size,
            "desc_act": common.act_order,
            "sym": common.symmetric,
            "lm_head": "lm_head" in schemes,
            "pack_dtype": "int32",
        }
        if provenance is not None:
            found |= dict(provenance.notes or {})
            found["meta"] = {"quantizer": [provenance.quantizer]}
        dynamic = _dynamic(schemes, common, kept)
        return found | ({"dynamic": dynamic} if dynamic else {})

    def tensors(self, scheme: StoredScheme, n: int, k: int) -> dict[str, TensorSpec]:
        if not scheme.act_order:
            check_group(scheme, k, "GPTQ")
        for what, count in (("in_features", k), ("out_features", n)):
            if count * scheme.bits % 32:
                raise CheckpointError(
                    f"GPTQ: {count} {what} of {scheme.bits} bits do not fill 32-bit words",
                    f"{what} must be a multiple of 32",
                )
        groups, rows, columns = scheme.groups(k), dense_words(k, scheme.bits), dense_words(n, scheme.bits)
        return {
            "qweight": TensorSpec(((rows, n),), ("int32",), output_dim=1, input_dim=0, packed_dim=0),
            "qzeros": TensorSpec(
                ((groups, columns),), ("int32",), optional=scheme.symmetric, output_dim=1, input_dim=0, packed_dim=1
            ),
            "scales": TensorSpec(((groups, n),), FLOATS, output_dim=1, input_dim=0),
            "g_idx": TensorSpec(((k,),), INDICES, optional=not scheme.act_order, input_dim=0),
        }

    def holds(self, scheme: StoredScheme, headers: Headers) -> bool:
        return "qweight" in headers

    def shape(self, scheme: StoredScheme, headers: Headers) -> tuple[int, int]:
        words, n = headers["qweight"].shape
        return n, words * 32 // scheme.bits

    def scale_dtype(self, scheme: WeightScheme, model: str) -> str:
        return "float16"

    def in_tree(self, scheme: StoredScheme, host: Host) -> str | None:
        if not scheme.symmetric:
            return "asymmetric GPTQ"
        allowed = (4,) if host.device == "cpu" else (4, 8)
        if scheme.bits not in allowed:
            return f"GPTQ with {scheme.bits} bits ({' and '.join(map(str, allowed))} only)"
        if scheme.act_order and scheme.group_size != PER_CHANNEL:
            return "GPTQ act-order with groups"
        if scheme.group_size not in (PER_CHANNEL, 32, 64, 128):
            return f"GPTQ with group_size {scheme.group_size}"
        return "GPTQ on a CPU without AVX-512" if host.lacks_avx512 else None

    def experts_in_tree(self, host: Host) -> str | None:
        return "GPTQ experts on a CPU" if host.device == "cpu" else None

    def in_tree_kernel(self, scheme: StoredScheme, host: Host, kind: Kind) -> str:
        return mixed_precision_kernel(host)

    def shard_step(self, scheme: StoredScheme, k: int) -> ShardStep:
        step = canonical_step(scheme)
        if step.columns > 1:
            return step
        # Whole words: 32 / bits columns; 3-bit fields cross words and meet a border every 32.
        return ShardStep(columns=32 // scheme.bits if 32 % scheme.bits == 0 else 32, columns_unit=WORD)

    def in_tree_bytes(self, scheme: StoredScheme, n: int, k: int, full_k: int, itemsize: int) -> int:
        groups = scheme.groups(full_k) if scheme.act_order else scheme.groups(k)
        zeros = 4 * dense_words(n, scheme.bits)
        order = 4 * k if scheme.act_order else 0
        return n * 4 * dense_words(k, scheme.bits) + groups * (zeros + n * itemsize) + order

    def expert_bytes(self, scheme: StoredScheme, n: int, itemsize: int, *, first: bool) -> int:
        """vLLM gives quantized experts a bias, also where the checkpoint has none."""
        return n * itemsize

    def store(self, scheme: StoredScheme) -> StoredScheme:
        refuse_unless_weight_only_int(scheme, "gptq", BITS)
        # v2 keeps zero points as they are; v1's "minus one" cannot say zero to every reader.
        return replace(scheme, storage=GPTQ_V1 if scheme.symmetric else GPTQ_V2, group_size=per_channel(scheme))

    def unpack(self, tensors: Tensors, scheme: StoredScheme, n: int, k: int) -> CanonicalWeight:
        import torch

        from vllm_quant_kernels.unpack import WordCodes
        from vllm_quant_kernels.unpack_weight import StoredWeight

        zeros = None
        if "qzeros" in tensors:
            zeros = _unpack_zeros(tensors["qzeros"], scheme, n).t().contiguous()
            if scheme.symmetric and bool((zeros == 1 << (scheme.bits - 1)).all()):
                zeros = None
        group, groups = scheme.group_of(k), scheme.groups(k)
        g_idx = tensors.get("g_idx")
        if g_idx is not None:
            if k and (int(g_idx.min()) < 0 or int(g_idx.max()) >= groups):
                raise CheckpointError(f"g_idx holds a group outside 0..{groups - 1}", "the checkpoint is damaged")
            g_idx = g_idx.to(torch.int32)
            # A g_idx in natural order says nothing: the kernels need no gather then.
            if torch.equal(g_idx, (torch.arange(k, device=g_idx.device) // group).to(torch.int32)):
                g_idx = None
        codes = WordCodes(tensors["qweight"], "k", scheme.bits, n, k)
        return StoredWeight((codes,), tensors["scales"].t().contiguous(), group, zeros, g_idx)

    def pack(self, weight: CanonicalWeight, scheme: StoredScheme) -> dict[str, torch.Tensor]:
        import torch

        from vllm_quant_plugin.formats.bits import pack_dense

        zeros = weight.zeros
        if zeros is None:
            zeros = torch.full(weight.scales.shape, 1 << (scheme.bits - 1), dtype=torch.uint8)
        return {
            "qweight": pack_dense(weight.codes, scheme.bits).t().contiguous(),
            "qzeros": _pack_zeros(zeros.round().to(torch.uint8).t().contiguous(), scheme),
            "scales": weight.scales.t().contiguous().half(),
            "g_idx": weight.group_index().to(torch.int32),
        }


def _check_bits(bits: int) -> int:
    return check_bits(bits, BITS, "GPTQ")


def _dynamic(schemes: Mapping[str, StoredScheme], common: StoredScheme, kept: Sequence[str]) -> dict[str, Any]:
    """GPTQModel's ``dynamic``: what differs from the config's own bits and groups."""
    found: dict[str, Any] = {f"-:.*{name.replace('.', '[.]')}": {} for name in kept if name != "lm_head"}
    for name, scheme in schemes.items():
        if scheme != common:
            found[f"+:{fused_pattern(name)}"] = {
                "bits": scheme.bits, "group_size": scheme.group_size, "sym": scheme.symmetric,
                "desc_act": scheme.act_order,
            }  # fmt: skip
    return found


def _word_of_ones(bits: int) -> int:
    """The word whose every field is 1, as the int32 that torch adds."""
    word = sum(1 << shift for shift in range(0, 32, bits))
    return word - (1 << 32) if word >= 1 << 31 else word


def _unpack_zeros(qzeros: torch.Tensor, scheme: StoredScheme, n: int) -> torch.Tensor:
    from vllm_quant_plugin.formats.bits import unpack_dense

    offset = scheme.storage["zero_offset"]
    if offset and 32 % scheme.bits == 0:
        # int32 addition wraps modulo 2**32, as the subtraction did.
        return unpack_dense(qzeros + _word_of_ones(scheme.bits), scheme.bits, n)
    return (unpack_dense(qzeros, scheme.bits, n) + offset) & ((1 << scheme.bits) - 1)


def _pack_zeros(zeros: torch.Tensor, scheme: StoredScheme) -> torch.Tensor:
    from vllm_quant_plugin.formats.bits import pack_dense

    offset = scheme.storage["zero_offset"]
    if offset and 32 % scheme.bits == 0:
        return pack_dense(zeros, scheme.bits) - _word_of_ones(scheme.bits)
    return pack_dense((zeros - offset) & ((1 << scheme.bits) - 1), scheme.bits)
