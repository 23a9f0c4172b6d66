"""Bytes that one rank holds of one parameter, by quantization scheme. No torch.

The figures are those of the parameters that vLLM's methods create for the storage format
(codes, scales, zero points, permutation), which is also what a rank holds while it loads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from vllm_quant_plugin.scheme import Scheme
from vllm_quant_serve.plan.model.arch import VOCAB_PADDING, Parameter
from vllm_quant_serve.plan.model.schemes import BitsAndBytes, FloatScheme

Server = Literal["", "cpu", "cuda"]


@dataclass(frozen=True)
class Placement:
    """How a model is cut.

    Attributes:
        tp, pp, dp: tensor, pipeline and data parallel sizes.
        expert_parallel: whole experts are distributed over the ranks.
        layers: layers of each pipeline stage, where the stages differ from vLLM's even split.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    expert_parallel: bool = False
    layers: tuple[int, ...] = ()

    @property
    def devices(self) -> int:
        return self.tp * self.pp * self.dp

    def stages(self, layers: int) -> list[int]:
        """How many of ``layers`` layers each stage holds."""
        return list(self.layers) if self.layers else stage_layers(layers, self.pp)

    @property
    def expert_ranks(self) -> int:
        """Ranks over which whole experts are distributed; 1 without expert parallelism."""
        return self.tp * self.dp if self.expert_parallel else 1


def padded_vocab(vocab: int) -> int:
    return -(-vocab // VOCAB_PADDING) * VOCAB_PADDING


def stage_layers(layers: int, pp: int) -> list[int]:
    """Layers of each pipeline stage, as vLLM's ``get_pp_indices`` distributes them.

    What does not divide goes to the stages before the last, from its end.
    """
    stages = [layers // pp] * pp
    for i in range(2, layers % pp + 2):
        stages[-i] += 1
    return stages


def local_shape(parameter: Parameter, place: Placement) -> tuple[int, tuple[int, ...]]:
    """Number of identical tensors and their shape on the fullest rank."""
    shape, count, role = parameter.shape, parameter.count, parameter.role
    if role.startswith("expert"):
        if place.expert_parallel:
            return -(-count // place.expert_ranks), shape
        # Without expert parallelism data-parallel ranks of a MoE model cut experts, too (FusedMoE flattens DP into TP).
        cut = place.tp * place.dp
        if role == "expert_column":
            return count, (-(-shape[0] // cut), *shape[1:])
        return count, (*shape[:-1], -(-shape[-1] // cut)) if role == "expert_row" else shape
    if role == "column":
        return count, (-(-shape[0] // place.tp), *shape[1:])
    if role == "row":
        return count, (*shape[:-1], -(-shape[-1] // place.tp)) if len(shape) > 1 else shape
    if role == "kv":
        per_head = shape[0] // parameter.heads
        return count, (max(1, parameter.heads // place.tp) * per_head, *shape[1:])
    if role == "vocab":
        return count, (-(-padded_vocab(shape[0]) // place.tp), *shape[1:])
    return count, shape


def parameter_bytes(
    parameter: Parameter, place: Placement, scheme: Scheme | None, itemsize: int, plugin: Server = ""
) -> int:
    """Bytes of ``parameter`` on one rank.

    Args:
        plugin: the device whose packed layout of this plugin holds the weight, "" for vLLM's own methods.
        scheme: the module's scheme, None for ``itemsize`` bytes per element.
        itemsize: bytes per element of the model's dtype.
    """
    count, shape = local_shape(parameter, place)
    if parameter.nbytes:
        return math.ceil(parameter.nbytes * count * math.prod(shape) / (parameter.count * math.prod(parameter.shape)))
    if scheme is None or not parameter.linear or len(shape) != 2:
        return count * math.prod(shape) * (parameter.itemsize or itemsize)
    rows_cut = parameter.role in ("row", "expert_row") and shape[1] != parameter.shape[1]
    full_in = parameter.shape[1] if rows_cut else shape[1]
    if plugin and not isinstance(scheme, FloatScheme):
        return count * packed_bytes(scheme, shape[0], shape[1], full_in, itemsize, plugin)
    return count * matrix_bytes(scheme, shape[0], shape[1], full_in, itemsize)


def packed_bytes(
    scheme: Scheme, out_features: int, in_features: int, full_in: int, itemsize: int, device: Server
) -> int:
    """Bytes of one matrix in this plugin's packed layout (vllm_quant_kernels: cpu/ and cuda/, layout.py and pack.py).

    Rows are padded to 16; columns to 32 on a CPU, to 64 on CUDA and for W8A8 on a CPU; each row has a
    scale per group, and a byte of zero point where the scheme is asymmetric.
    """
    rows = 16 * math.ceil(out_features / 16)
    act = scheme.activation
    wide = scheme.storage in ("dense", "fp8", "float-quantized", "int-quantized")  # scales in float32
    if device == "cpu" and act is not None and act.kind == "int" and scheme.kind == "int" and scheme.group_size == -1:
        return rows * 64 * math.ceil(in_features / 64) + 8 * rows + (0 if act.dynamic else 4)
    groups = scheme.groups(full_in) if scheme.act_order else scheme.groups(in_features)
    unit = 32 if device == "cpu" else 64
    columns = unit * math.ceil(in_features / unit)
    permutation = 0
    if scheme.act_order and groups > 1:
        # Runs of a group are padded to 16 columns: none is needed where each rank's groups are whole.
        permutation = 4 * (columns + groups + 1)
    zeros = 0 if scheme.symmetric or scheme.kind != "int" else rows * groups
    return rows * columns * scheme.bits // 8 + rows * groups * (4 if wide else itemsize) + zeros + permutation


def matrix_bytes(scheme: Scheme, out_features: int, in_features: int, full_in: int, itemsize: int) -> int:
    """Bytes of one quantized matrix of a rank: codes, scales, zero points, permutation.

    Args:
        out_features: N on this rank.
        in_features: K on this rank.
        full_in: K of the whole matrix: act-order keeps every group's scale on each rank.
        itemsize: bytes of a 16-bit scale.
    """
    n, k = out_features, in_features
    if isinstance(scheme, FloatScheme | BitsAndBytes):
        return scheme.matrix_bytes(n, k)
    groups = scheme.groups(full_in) if scheme.act_order else scheme.groups(k)
    words = 4 * math.ceil(k * scheme.bits / 32)
    if scheme.storage == "awq":
        codes = 4 * math.ceil(n * scheme.bits / 32)
        return k * codes + groups * (codes + n * itemsize)
    if scheme.storage == "gptq":
        zeros = 4 * math.ceil(n * scheme.bits / 32)
        return n * words + groups * (zeros + n * itemsize) + (4 * k if scheme.act_order else 0)
    if scheme.storage == "pack-quantized":
        zeros = 0 if scheme.symmetric else 4 * math.ceil(n * scheme.bits / 32)
        order = 4 * k if scheme.act_order else 0
        return n * words + groups * (zeros + n * itemsize) + order + 16
    if scheme.block is not None:
        return n * k + 4 * math.ceil(n / scheme.block[0]) * math.ceil(k / scheme.block[1])
    static = 4 if scheme.activation is not None and not scheme.activation.dynamic else 0
    if scheme.group_size == 0:
        return n * k + 4 + static
    return n * k + 4 * n * groups + static
