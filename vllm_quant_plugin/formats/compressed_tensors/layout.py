"""The tensors that llm-compressor writes, in three layouts.

pack-quantized     weight_packed      int32 (N, words(K))    fields offset by 2**(bits-1)
                   weight_scale       (N, G)
                   weight_zero_point  int32 (words(N), G)    asymmetric only, packed along N
                   weight_g_idx       int32 (K,)             act-order only
                   weight_shape       int64 (2,)
int-quantized      weight             int8 (N, K)
float-quantized    weight             float8_e4m3fn (N, K)
  both             weight_scale       (N, 1), (N, G), (1,), () or (N / bn, K / bk)
                   weight_zero_point  int8, like weight_scale, asymmetric only
                   input_scale, input_zero_point             static activations

2, 4 and 8 bits fill a word. 3, 5, 6 and 7 bits are padded (32 // bits fields per word) by
compressed-tensors up to 0.17 and dense from 0.18 on; the width of weight_packed tells which when
reading. Writing is dense, the layout that vLLM's loader expects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from vllm_quant_kernels import env
from vllm_quant_kernels.scheme import E4M3, E5M2, PER_CHANNEL, PER_TENSOR, Int, WeightScheme
from vllm_quant_plugin.errors import UsageError
from vllm_quant_plugin.formats.base import (
    FLOATS,
    INDICES,
    Format,
    Headers,
    Kind,
    Provenance,
    ShardStep,
    TensorSpec,
    mixed_precision_kernel,
)
from vllm_quant_plugin.formats.compressed_tensors.config import FP4_LAYOUTS, parse, storage, write
from vllm_quant_plugin.formats.compressed_tensors.in_tree import (
    embedding_in_tree,
    experts_in_tree,
    linear_in_tree,
    reaches_the_kernels,
)
from vllm_quant_plugin.formats.compressed_tensors.transforms import in_tree
from vllm_quant_plugin.formats.eight_bit import (
    CHANNEL_FP8_KERNEL,
    FP8_DTYPE,
    block_rows,
    eight_bit_bytes,
    eight_bit_step,
    holds_eight_bit,
    input_scale,
    input_zero_point,
    static_input_bytes,
    weight_shape,
)
from vllm_quant_plugin.formats.fp4 import fp4_bytes, fp4_step, fp4_tensors
from vllm_quant_plugin.formats.host import Host
from vllm_quant_plugin.formats.words import dense_words, padded_words
from vllm_quant_plugin.schemes import ModelScheme, StoredScheme

if TYPE_CHECKING:
    import torch

    from vllm_quant_kernels.canonical import CanonicalWeight
    from vllm_quant_plugin.formats.base import Tensors

_MIXED = "vqp_compressed_tensors"
_METHODS = {"float-quantized": "vqp_fp8", "int-quantized": "vqp_int8", "pack-quantized": _MIXED}


class CompressedTensorsFormat(Format):
    name: ClassVar[str] = "compressed-tensors"
    methods: ClassVar[tuple[str, ...]] = ("compressed-tensors",)
    vllm_methods: ClassVar[tuple[str, ...]] = ("vqp_fp8", "vqp_int8", _MIXED)
    mixed_method: ClassVar[str | None] = _MIXED
    leaves: ClassVar[tuple[str, ...]] = (
        "weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape", "input_scale",
        "input_zero_point",
    )  # fmt: skip
    target: ClassVar[bool] = True

    def matches(self, config: Mapping[str, Any]) -> bool:
        return super().matches(config) or ("config_groups" in config and not config.get("quant_method"))

    def parse(self, config: Mapping[str, Any]) -> ModelScheme:
        return parse(config)

    def write_config(
        self,
        schemes: Mapping[str, StoredScheme],
        common: StoredScheme,
        kept: Sequence[str],
        *,
        kv_cache: bool = False,
        provenance: Provenance | None = None,
    ) -> dict[str, Any]:
        if set(schemes.values()) <= {common}:
            # vLLM looks for the LM head by its name alone.
            heads = [name for name in schemes if name == "lm_head" or name.endswith(".lm_head")]
            return write([(common, ["Linear", *heads])], kept, kv_cache=kv_cache)
        groups: dict[StoredScheme, list[str]] = {}
        for name, scheme in schemes.items():
            groups.setdefault(scheme, []).append(name)
        return write(list(groups.items()), kept, kv_cache=kv_cache)

    def tensors(self, scheme: StoredScheme, n: int, k: int) -> dict[str, TensorSpec]:
        layout = scheme.storage["layout"]
        if layout == "pack-quantized":
            return _packed_tensors(scheme, n, k)
        if layout in FP4_LAYOUTS:
            return fp4_tensors(scheme, n, k, "weight_packed")
        return _plain_tensors(scheme, n, k)

    def holds(self, scheme: StoredScheme, headers: Headers) -> bool:
        return "weight_packed" in headers if _is_packed(scheme) else holds_eight_bit(headers)

    def shape(self, scheme: StoredScheme, headers: Headers) -> tuple[int, int]:
        if not _is_packed(scheme):
            return weight_shape(headers)
        n, words = headers["weight_packed"].shape
        if scheme.storage["layout"] in FP4_LAYOUTS:
            return n, 2 * words
        scales = headers["weight_scale"].shape
        if scheme.group_size > 0 and not scheme.act_order and len(scales) == 2:
            return n, scales[1] * scheme.group_size
        # Dense words; compressed-tensors up to 0.17 pads 3, 5, 6 and 7 bits and gives no better clue in the header.
        return n, words * 32 // scheme.bits

    def scale_dtype(self, scheme: WeightScheme, model: str) -> str:
        assert isinstance(scheme, StoredScheme)
        return model if _is_packed(scheme) else "float32"

    def readable(self, scheme: StoredScheme) -> bool:
        return scheme.storage["layout"] not in FP4_LAYOUTS

    def method(self, scheme: WeightScheme) -> str | None:
        assert isinstance(scheme, StoredScheme)
        return _METHODS.get(scheme.storage["layout"])

    def transforms_in_tree(self, model: ModelScheme, host: Host) -> str | None:
        return in_tree(model, host)

    def in_tree(self, scheme: StoredScheme, host: Host) -> str | None:
        return linear_in_tree(scheme, host)

    def refused_in_tree(self, scheme: StoredScheme, host: Host, kind: Kind, n: int = 0, k: int = 0) -> str | None:
        if kind == "experts":
            return experts_in_tree(scheme, host)
        if kind == "embedding":
            return embedding_in_tree(scheme, host)
        return linear_in_tree(scheme, host, n, k)

    def in_tree_kernel(self, scheme: StoredScheme, host: Host, kind: Kind) -> str:
        if host.device != "cpu":
            return ""
        by_layout = {"int-quantized": "CPUInt8ScaledMMLinearKernel", "float-quantized": CHANNEL_FP8_KERNEL}
        return by_layout.get(scheme.storage["layout"], mixed_precision_kernel(host))

    def kernel_helps(self, scheme: StoredScheme, host: Host, kind: Kind) -> bool:
        """vLLM's list of kernels is asked for packed linear layers whose columns are in natural order."""
        packed = scheme.storage["layout"] == "pack-quantized" and scheme.activation is None
        return packed and _listed(host) and kind in ("linear", "lm_head") and reaches_the_kernels(scheme)

    def shard_step(self, scheme: StoredScheme, k: int) -> ShardStep:
        return fp4_step(scheme) if scheme.storage["layout"] in FP4_LAYOUTS else eight_bit_step(scheme)

    def in_tree_bytes(self, scheme: StoredScheme, n: int, k: int, full_k: int, itemsize: int) -> int:
        layout = scheme.storage["layout"]
        if layout in FP4_LAYOUTS:
            return fp4_bytes(scheme, n, k)
        if layout != "pack-quantized":
            return eight_bit_bytes(scheme, n, k, full_k)
        groups = scheme.groups(full_k) if scheme.act_order else scheme.groups(k)
        zeros = 0 if scheme.symmetric else 4 * dense_words(n, scheme.bits)
        order = 4 * k if scheme.act_order else 0
        return n * 4 * dense_words(k, scheme.bits) + groups * (zeros + n * itemsize) + order + 16

    def module_bytes(self, scheme: StoredScheme, *, expert: bool = False) -> int:
        layout = scheme.storage["layout"]
        if layout == "pack-quantized":
            return 16
        return static_input_bytes(scheme) if expert or layout == "int-quantized" else 0

    def expert_bytes(self, scheme: StoredScheme, n: int, itemsize: int, *, first: bool) -> int:
        """The shape of packed experts has the model's dtype, not int64."""
        packed = scheme.storage["layout"] == "pack-quantized"
        return 2 * itemsize - 16 if packed and first else 0

    def attention_bytes(self, itemsize: int, scale: int) -> int:
        """Scales of q, k and v in float32 and zero points in the model's dtype."""
        return 3 * (scale + itemsize)

    def store(self, scheme: StoredScheme) -> StoredScheme:
        if scheme.storage.format == self.name:
            raise UsageError("is compressed-tensors already", "there is nothing to convert")
        if scheme.value == E5M2:
            raise UsageError("is FP8 E5M2: compressed-tensors holds E4M3", "keep it as it is")
        return replace(scheme, storage=storage(_layout_for(scheme)))

    def unpack(self, tensors: Tensors, scheme: StoredScheme, n: int, k: int) -> CanonicalWeight:
        layout = scheme.storage["layout"]
        if layout == "pack-quantized":
            return _unpack_words(tensors, scheme, n, k)
        if layout in FP4_LAYOUTS:
            return super().unpack(tensors, scheme, n, k)
        return _unpack_plain(tensors, scheme, n, k)

    def pack(self, weight: CanonicalWeight, scheme: StoredScheme) -> dict[str, torch.Tensor]:
        return (_pack_words if scheme.storage["layout"] == "pack-quantized" else _pack_plain)(weight, scheme)


def _listed(host: Host) -> bool:
    """Whether this plugin's kernel is in vLLM's list."""
    try:
        return host.device == "cpu" and env.choice("VQP_LINEAR_KERNELS") != "off"
    except env.SettingError:
        return True  # vLLM's start refuses the value


def _layout_for(scheme: StoredScheme) -> str:
    """The layout for a weight of another format.

    Raises:
        UsageError: there is none.
    """
    if scheme.value == E4M3:
        return "float-quantized"
    if not isinstance(scheme.value, Int) or not 2 <= scheme.bits <= 8:
        raise UsageError(f"is {scheme.describe()}: compressed-tensors holds INT2 to INT8 and FP8", "keep it as it is")
    return "pack-quantized" if scheme.activation is None else "int-quantized"


def _is_packed(scheme: StoredScheme) -> bool:
    layout: str = scheme.storage["layout"]
    return layout == "pack-quantized" or layout in FP4_LAYOUTS


def _scale_spec(scheme: StoredScheme, n: int, k: int, dtypes: tuple[str, ...]) -> TensorSpec:
    """weight_scale, and zero points of the same shape."""
    if scheme.block:
        blocks = (-(-n // scheme.block[0]), -(-k // scheme.block[1]))
        return TensorSpec((blocks,), dtypes, output_dim=0, input_dim=1)
    if scheme.group_size == PER_TENSOR:
        return TensorSpec(((), (1,), (1, 1)), dtypes)
    if scheme.group_size == PER_CHANNEL:
        return TensorSpec(((n, 1), (n,)), dtypes, output_dim=0)
    return TensorSpec(((n, scheme.groups(k)),), dtypes, output_dim=0, input_dim=1)


def _packed_tensors(scheme: StoredScheme, n: int, k: int) -> dict[str, TensorSpec]:
    bits, groups = scheme.bits, scheme.groups(k)
    packed = tuple((n, words(k, bits)) for words in (dense_words, padded_words))
    zeros = tuple((words(n, bits), groups) for words in (dense_words, padded_words))
    asymmetric = not scheme.symmetric
    return {
        "weight_packed": TensorSpec(packed, ("int32",), output_dim=0, input_dim=1, packed_dim=1),
        "weight_scale": _scale_spec(scheme, n, k, FLOATS),
        "weight_zero_point": TensorSpec(
            zeros, ("int32",), optional=not asymmetric, written=asymmetric, output_dim=0, input_dim=1, packed_dim=0
        ),
        "weight_g_idx": TensorSpec(
            ((k,),), INDICES, optional=not scheme.act_order, written=scheme.act_order, input_dim=0
        ),
        "weight_shape": TensorSpec(((2,),), ("int64", "int32"), optional=True),
    }


def _plain_tensors(scheme: StoredScheme, n: int, k: int) -> dict[str, TensorSpec]:
    """One element per weight, in a byte. Codes narrower than 8 bits have one as well."""
    dtype = "int8" if scheme.is_int else FP8_DTYPE[scheme.value]
    found = {
        "weight": TensorSpec(((n, k),), (dtype,), output_dim=0, input_dim=1),
        "weight_scale": _scale_spec(scheme, n, k, FLOATS),
        "input_scale": input_scale(scheme),
        "input_zero_point": input_zero_point(scheme),
    }
    if not scheme.symmetric:
        found["weight_zero_point"] = _scale_spec(scheme, n, k, ("int8", *FLOATS))
    if scheme.group_size > 0 and not scheme.block:
        found["weight_g_idx"] = TensorSpec(
            ((k,),), INDICES, optional=not scheme.act_order, written=scheme.act_order, input_dim=0
        )
    return found


def _to_groups(values: torch.Tensor, scheme: StoredScheme, n: int) -> torch.Tensor:
    """Scales or zeros of any accepted shape to (N, G)."""
    if scheme.block:
        return block_rows(values, scheme.block[0], n)
    if values.numel() == 1:
        return values.reshape(1, 1).expand(n, 1).contiguous()
    return values.reshape(n, -1).contiguous()


def _fields(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """uint8 (..., count) from words of either layout, told apart by their number."""
    from vllm_quant_plugin.formats.bits import unpack_dense, unpack_padded

    padded = words.shape[-1] == padded_words(count, bits)
    return (unpack_padded if padded else unpack_dense)(words, bits, count)


def _group_index(tensors: Tensors, scheme: StoredScheme) -> torch.Tensor | None:
    """int32 (K,) wherever the module has one: the writing library applies it whatever ``actorder`` says.

    None without, and where it says nothing: in natural order, or of -1, which the library leaves unset.
    """
    import torch

    g_idx = tensors.get("weight_g_idx")
    if g_idx is None or scheme.group_size <= 0 or bool((g_idx == -1).any()):
        return None
    g_idx = g_idx.to(torch.int32)
    natural = torch.arange(len(g_idx), device=g_idx.device) // scheme.group_size
    return None if torch.equal(g_idx, natural.to(torch.int32)) else g_idx


def _unpack_words(tensors: Tensors, scheme: StoredScheme, n: int, k: int) -> CanonicalWeight:
    from vllm_quant_kernels.unpack import WordCodes
    from vllm_quant_kernels.unpack_weight import StoredWeight

    zeros, words = None, tensors["weight_packed"]
    if "weight_zero_point" in tensors:
        zeros = _fields(tensors["weight_zero_point"].t().contiguous(), scheme.bits, n).t().contiguous()
    padded = words.shape[-1] == padded_words(k, scheme.bits)
    return StoredWeight(
        (WordCodes(words, "k_padded" if padded else "k_rows", scheme.bits, n, k),),
        scales=_to_groups(tensors["weight_scale"], scheme, n),
        group_size=scheme.group_of(k),
        zeros=zeros,
        g_idx=_group_index(tensors, scheme),
    )


def _pack_words(weight: CanonicalWeight, scheme: StoredScheme) -> dict[str, torch.Tensor]:
    import torch

    from vllm_quant_plugin.formats.bits import pack_dense

    n, k = weight.codes.shape
    tensors = {
        "weight_packed": pack_dense(weight.codes, scheme.bits),
        "weight_scale": weight.scales,
        "weight_shape": torch.tensor([n, k]),
    }
    if weight.zeros is not None:
        zeros = weight.zeros.round().to(torch.uint8).t().contiguous()
        tensors["weight_zero_point"] = pack_dense(zeros, scheme.bits).t().contiguous()
    if weight.g_idx is not None:
        tensors["weight_g_idx"] = weight.g_idx
    return tensors


def _unpack_plain(tensors: Tensors, scheme: StoredScheme, n: int, k: int) -> CanonicalWeight:
    import torch

    from vllm_quant_kernels.canonical import CanonicalWeight, kind_of

    codes, zeros = tensors["weight"].contiguous().view(torch.uint8), None
    if scheme.is_int:
        # Two's complement with the top bit flipped is the code: -128 -> 0, 0 -> 128, 127 -> 255.
        codes = codes ^ 0x80
        if "weight_zero_point" in tensors and not scheme.symmetric:
            zeros = _to_groups(tensors["weight_zero_point"], scheme, n).float() + 128
    return CanonicalWeight(
        codes,
        _to_groups(tensors["weight_scale"], scheme, n),
        8,
        scheme.block[1] if scheme.block else scheme.group_of(k),
        zeros,
        kind_of(scheme.value),
        _group_index(tensors, scheme),
    )


def _pack_plain(weight: CanonicalWeight, scheme: StoredScheme) -> dict[str, torch.Tensor]:
    import torch

    from vllm_quant_kernels.canonical import FP8_DTYPES, kind_of

    if scheme.is_int:
        values = (weight.codes ^ 0x80).view(torch.int8)
    else:
        values = weight.codes.view(FP8_DTYPES[kind_of(scheme.value)])
    scales = weight.scales
    if scheme.block:
        scales = scales[:: scheme.block[0]].contiguous()
    elif scheme.group_size == PER_TENSOR:
        scales = scales[0, 0].clone()
    tensors = {"weight": values, "weight_scale": scales}
    if weight.zeros is not None:
        zeros = (weight.zeros.float() - 128).round().to(torch.int8)
        tensors["weight_zero_point"] = zeros[0, 0].clone() if scheme.group_size == PER_TENSOR else zeros
    if weight.g_idx is not None:
        tensors["weight_g_idx"] = weight.g_idx
    return tensors
