"""What every on-disk format answers. A format is one module: the only one that knows how it is spelled and stored.

Importing a format needs no torch: only ``unpack`` and ``pack`` work on tensors. N is out_features, K in_features.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from vllm_quant_kernels.scheme import PER_CHANNEL, PER_TENSOR, Int, WeightScheme
from vllm_quant_plugin.errors import CheckpointError, UsageError
from vllm_quant_plugin.formats.host import Host
from vllm_quant_plugin.schemes import ModelScheme, StoredScheme

if TYPE_CHECKING:
    import torch

    from vllm_quant_kernels.canonical import CanonicalWeight

    Tensors = Mapping[str, torch.Tensor]

# What vLLM makes of a module: each kind has methods of its own.
Kind = Literal["linear", "experts", "lm_head", "embedding"]
# The unit of a step where packed words must stay whole.
WORD = "32-bit word"
FLOATS = ("float16", "bfloat16", "float32")
INDICES = ("int32", "int64")
# The expert count of a mixture of experts, by every name that a model family gives it.
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


class TensorHeader(Protocol):
    """What a safetensors header says of a tensor."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...


Headers = Mapping[str, TensorHeader]


@dataclass(frozen=True)
class TensorSpec:
    """What one tensor of a module must look like.

    Attributes:
        shapes: the shapes that are accepted; the first is written.
        dtypes: the dtypes that are accepted, as torch spells them; the first is written, but scales (``FLOATS``) have
            the dtype that the format keeps scales in.
        optional: the module may come without it.
        written: whether ``pack`` writes it.
        output_dim, input_dim: the dimensions along the output and the input features, whatever one element covers;
            None where there is none. vLLM's model files reorder and cut tensors by them.
        packed_dim: the dimension along which an element holds several codes.
    """

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    optional: bool = False
    written: bool = True
    output_dim: int | None = None
    input_dim: int | None = None
    packed_dim: int | None = None


@dataclass(frozen=True)
class ShardStep:
    """What the cuts of a tensor-parallel split must be a multiple of.

    Attributes:
        rows: output features of a column-parallel shard.
        columns: input features of a row-parallel shard.
        fused_rows: the same of a matrix that vLLM fuses with others; None for ``rows``.
        rows_unit, columns_unit: what one step is, for messages: ``group``, ``block``, ``WORD``.
    """

    rows: int = 1
    columns: int = 1
    rows_unit: str = "row"
    columns_unit: str = "column"
    fused_rows: int | None = None


@dataclass(frozen=True)
class Provenance:
    """How the codes were found: what some configs record beside the scheme.

    Attributes:
        quantizer: ``name:version`` of what made the codes, "" when unknown (a conversion).
        notes: facts of the algorithm, by the names of the config's own fields.
    """

    quantizer: str = ""
    notes: Mapping[str, Any] | None = None


class Format(ABC):
    """One on-disk format. Stateless.

    Attributes:
        name: as ``Storage.format``.
        methods: the values of ``quant_method`` that mean it, in lower case.
        vllm_methods: names under which vLLM knows this plugin's methods for it, ``vqp_`` and a word; vLLM gets a
            quantization method for each. None where the plugin adds kernels to vLLM's own method, or only sizes it.
        config_files: names of files beside config.json from which vLLM may read the config, by ``--quantization``.
        leaves: last name components of its tensors; the first holds the codes, the rest belongs to them.
        target: whether ``convert --to`` and ``quantize`` can write it.
        mixed: whether modules of one checkpoint may have different bits.
        mixed_method: the one of ``vllm_methods`` that serves modules of every scheme together; None where each does.
        keeps_layout: ``quantize`` never writes its weights as compressed-tensors instead, which holds KV-cache scales.
        removed: vLLM dropped its method and the plugin has none: such a checkpoint is sized, so that the refusal can
            say how large it is.
    """

    name: ClassVar[str]
    methods: ClassVar[tuple[str, ...]]
    vllm_methods: ClassVar[tuple[str, ...]] = ()
    config_files: ClassVar[tuple[str, ...]] = ()
    leaves: ClassVar[tuple[str, ...]] = ("weight",)
    target: ClassVar[bool] = False
    mixed: ClassVar[bool] = True
    mixed_method: ClassVar[str | None] = None
    keeps_layout: ClassVar[bool] = False
    removed: ClassVar[bool] = False

    # ------------------------------------------------------------------------------------------ the config

    def matches(self, config: Mapping[str, Any]) -> bool:
        """Whether a ``quantization_config`` is of this format."""
        return str(config.get("quant_method", "")).lower() in self.methods

    @abstractmethod
    def parse(self, config: Mapping[str, Any]) -> ModelScheme:
        """The schemes that a ``quantization_config`` means.

        Raises:
            CheckpointError: a field is missing, impossible, or not known.
        """

    def write_config(
        self,
        schemes: Mapping[str, StoredScheme],
        common: StoredScheme,
        kept: Sequence[str],
        *,
        kv_cache: bool = False,
        provenance: Provenance | None = None,
    ) -> dict[str, Any]:
        """The ``quantization_config`` of a checkpoint, as the format's own tools write it.

        Args:
            schemes: of each quantized module.
            common: the scheme that the config names as the model's own.
            kept: matrices that stay in 16 bits.
            kv_cache: the checkpoint holds scales of an FP8 KV cache.

        Raises:
            UsageError: the config cannot say this.
        """
        raise UsageError(f"{self.name} checkpoints are not written", "choose another format")

    # ------------------------------------------------------------------------------------------ the tensors

    @abstractmethod
    def tensors(self, scheme: StoredScheme, n: int, k: int) -> dict[str, TensorSpec]:
        """The tensors of an (n, k) module by their last name component.

        Raises:
            CheckpointError: the layout cannot hold this shape.
        """

    @abstractmethod
    def holds(self, scheme: StoredScheme, headers: Headers) -> bool:
        """Whether a module's tensors are of this format: the config may name more than was quantized."""

    def leaf(self, scheme: StoredScheme, name: str) -> str:
        """What ``tensors`` calls a tensor by its last name component: some tools have names of their own."""
        return name

    @abstractmethod
    def shape(self, scheme: StoredScheme, headers: Headers) -> tuple[int, int]:
        """(N, K) of a module, from the shapes of its tensors."""

    def scale_dtype(self, scheme: WeightScheme, model: str) -> str:
        """The dtype that the format's own tools keep scales in, for weights of dtype ``model``."""
        return model

    def stored_bytes(self, scheme: StoredScheme, n: int, k: int, model_dtype: str = "bfloat16") -> int:
        """Bytes of the tensors that ``pack`` writes for an (n, k) module."""
        total = 0
        for spec in self.tensors(scheme, n, k).values():
            if spec.written:
                dtype = self.scale_dtype(scheme, model_dtype) if spec.dtypes == FLOATS else spec.dtypes[0]
                total += math.prod(spec.shapes[0]) * ITEM_SIZE[dtype]
        return total

    # ------------------------------------------------------------------------------------------ who serves it

    def readable(self, scheme: StoredScheme) -> bool:
        """Whether ``unpack`` reads the scheme; else vLLM alone can serve it."""
        return True

    def method(self, scheme: WeightScheme) -> str | None:
        """The one of ``vllm_methods`` that serves the scheme; None when only the plugin's kernels or vLLM itself do."""
        return self.vllm_methods[0] if self.vllm_methods else None

    def in_tree(self, scheme: StoredScheme, host: Host) -> str | None:
        """Why vLLM without this plugin does not serve the scheme on ``host``; None when it does."""
        return None

    def transforms_in_tree(self, model: ModelScheme, host: Host) -> str | None:
        """Why vLLM without this plugin does not apply the online transforms on ``host``; None when it does."""
        return "online transforms" if model.online else None

    def experts_in_tree(self, host: Host) -> str | None:
        """Why vLLM without this plugin does not serve experts in this format on ``host``; None when it does."""
        return None

    def refused_in_tree(self, scheme: StoredScheme, host: Host, kind: Kind, n: int = 0, k: int = 0) -> str | None:
        """Why vLLM without this plugin does not serve an (n, k) module of ``kind``; sizes are 0 where not known."""
        if kind == "embedding":
            return "quantized embeddings"
        reason = self.experts_in_tree(host) if kind == "experts" else None
        return reason or self.in_tree(scheme, host)

    def in_tree_kernel(self, scheme: StoredScheme, host: Host, kind: Kind) -> str:
        """Name of the kernel by which vLLM's own method serves it; "" where that depends on the GPU or is not known."""
        return ""

    def kernel_helps(self, scheme: StoredScheme, host: Host, kind: Kind) -> bool:
        """Whether vLLM's own method serves it by this plugin's entry in vLLM's list of kernels."""
        return False

    def shard_step(self, scheme: StoredScheme, k: int) -> ShardStep:
        """Of vLLM's own methods, which cut stored tensors. The plugin cuts canonical weights: ``canonical_step``."""
        return canonical_step(scheme)

    def in_tree_bytes(self, scheme: StoredScheme, n: int, k: int, full_k: int, itemsize: int) -> int:
        """Bytes that vLLM's own method keeps for one rank's (n, k) shard of a matrix with ``full_k`` input features.

        Args:
            itemsize: bytes of a 16-bit scale: of the model's dtype.
        """
        return self.stored_bytes(scheme, n, k)

    def module_bytes(self, scheme: StoredScheme, *, expert: bool = False) -> int:
        """Of ``in_tree_bytes``, what vLLM keeps once per module, also where it fuses several matrices into one."""
        return 0

    def expert_bytes(self, scheme: StoredScheme, n: int, itemsize: int, *, first: bool) -> int:
        """What vLLM keeps of an expert's (n, k) shard beyond ``in_tree_bytes``; below zero where it keeps less.

        Args:
            first: it is a module of its own, or the first of those that a module fuses.
        """
        return 0

    def expert_scheme(self, scheme: StoredScheme, inner: int, hidden: int) -> StoredScheme:
        """``scheme`` as vLLM keeps it for experts of which a rank holds ``inner`` features."""
        return scheme

    def attention_bytes(self, itemsize: int, scale: int) -> int:
        """Bytes of the cache scales that vLLM's method gives each attention layer while the model loads.

        Args:
            itemsize: bytes per element of the model's dtype.
            scale: bytes of a scale in float32: fewer where transformers' code runs the model in one dtype.
        """
        return 0

    # ------------------------------------------------------------------------------------------ the weights

    def store(self, scheme: StoredScheme) -> StoredScheme:
        """``scheme`` as this format would hold it.

        Raises:
            UsageError: the format cannot hold it without loss; a clause that begins with a verb, after a module's name.
        """
        raise UsageError(f"cannot be written as {self.name}", "choose another format")

    def unpack(self, tensors: Tensors, scheme: StoredScheme, n: int, k: int) -> CanonicalWeight:
        """Canonical form of tensors that satisfy ``tensors``."""
        raise CheckpointError(f"{self.name} checkpoints are not read by this plugin", "serve it with vLLM itself")

    def static_activation(self, tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor | None] | None:
        """Scale and zero point (None: 0) of a module's static activations; None where it has none."""
        scale = tensors.get("input_scale")
        return None if scale is None else (scale, tensors.get("input_zero_point"))

    def pack(self, weight: CanonicalWeight, scheme: StoredScheme) -> dict[str, torch.Tensor]:
        """Tensors as on disk. ``unpack(pack(w))`` is ``w`` up to the dtype that the format stores scales in."""
        raise UsageError(f"{self.name} checkpoints are not written", "choose another format")

    def validate(self, module: str, tensors: Tensors, scheme: StoredScheme, n: int, k: int) -> None:
        """Check presence, shapes and dtypes.

        Raises:
            CheckpointError: naming the module's tensor, what it is and what it should be.
        """
        for leaf, spec in self.tensors(scheme, n, k).items():
            tensor = tensors.get(leaf)
            name = f"{module}.{leaf}"
            if tensor is None:
                if spec.optional:
                    continue
                raise CheckpointError(
                    f"tensor {name} is missing from the checkpoint",
                    f"the config says {scheme.describe()}; check quantization_config or download again",
                )
            shape = tuple(tensor.shape)
            if shape not in spec.shapes:
                wanted = " or ".join(str(list(s)) for s in spec.shapes)
                raise CheckpointError(
                    f"tensor {name} has shape {list(shape)}, expected {wanted} for {scheme.describe()} ({n} x {k})",
                    "config.json and weights do not belong together, or the file is damaged",
                )
            dtype = str(tensor.dtype).removeprefix("torch.")
            if dtype not in spec.dtypes:
                raise CheckpointError(
                    f"tensor {name} is {dtype}, expected {' or '.join(spec.dtypes)}",
                    "config.json and weights do not belong together",
                )


ITEM_SIZE = {
    "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int8": 1, "uint8": 1,
    "float8_e4m3fn": 1, "float8_e5m2": 1,
}  # fmt: skip


def canonical_step(scheme: WeightScheme) -> ShardStep:
    """Cuts of a canonical weight: whole groups along the input, or anywhere with act-order (ranks keep all scales)."""
    if scheme.block is not None:
        return ShardStep(columns=scheme.block[1], columns_unit="block")
    if scheme.group_size > 0 and not scheme.act_order:
        return ShardStep(columns=scheme.group_size, columns_unit="group")
    return ShardStep()


def fits_columns(step: ShardStep, in_features: int, tp: int) -> bool:
    """Whether a row-parallel split over ``tp`` ranks cuts ``in_features`` at whole steps."""
    return in_features % tp == 0 and (tp == 1 or in_features // tp % step.columns == 0)


def check_group(scheme: WeightScheme, k: int, what: str) -> None:
    """Raise CheckpointError unless whole groups fill the K input features."""
    if k % scheme.group_of(k):
        raise CheckpointError(
            f"{what}: group_size {scheme.group_size} does not divide in_features {k}",
            "quantize with a group size that divides every layer's input, or -1",
        )


def mixed_precision_kernel(host: Host) -> str:
    """vLLM's kernel for integer weights and 16-bit activations on a CPU; on a GPU it depends on the GPU."""
    return "CPUWNA16LinearKernel" if host.device == "cpu" else ""


def per_channel(scheme: WeightScheme) -> int:
    """The group size where a layout has no scale for the whole tensor: one for each channel says the same."""
    return PER_CHANNEL if scheme.group_size == PER_TENSOR else scheme.group_size


def refuse_unless_weight_only_int(scheme: StoredScheme, target: str, bits: tuple[int, ...]) -> None:
    """What AWQ's and GPTQ's layouts have in common: integers, 16-bit activations, few widths.

    Raises:
        UsageError: naming what the layout does not hold.
    """
    if not isinstance(scheme.value, Int):
        raise UsageError(f"is {scheme.describe()}: {target} holds integers", "--to compressed-tensors holds FP8")
    if scheme.activation is not None:
        raise UsageError(
            f"has 8-bit activations ({scheme.describe()}), which {target} does not know",
            "it would be another model; keep it as it is",
        )
    if scheme.bits not in bits:
        listed = ", ".join(map(str, bits))
        raise UsageError(f"has {scheme.bits} bits: {target} holds {listed}", "--to compressed-tensors holds 2 to 8")
