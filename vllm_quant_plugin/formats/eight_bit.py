"""What layouts of one byte per weight share: FP8 checkpoints, and compressed-tensors' int- and float-quantized.

No torch at import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_quant_kernels.scheme import E4M3, E5M2, PER_TENSOR, Float, ValueType, WeightScheme
from vllm_quant_plugin.formats.base import FLOATS, Headers, ShardStep, TensorSpec, canonical_step
from vllm_quant_plugin.formats.host import Host

if TYPE_CHECKING:
    import torch

FP8_DTYPE: dict[ValueType, str] = {E4M3: "float8_e4m3fn", E5M2: "float8_e5m2"}
# vLLM's kernel for dynamic activations per token on a CPU.
CHANNEL_FP8_KERNEL = "ChannelWiseTorchFP8ScaledMMLinearKernel"
_STORED = ("I8", "U8", "F8_E4M3", "F8_E5M2")  # as safetensors names them


def input_scale(scheme: WeightScheme) -> TensorSpec:
    """The scale of static activations."""
    static = scheme.activation is not None and not scheme.activation.dynamic
    return TensorSpec(((), (1,)), ("float32", "float16", "bfloat16"), optional=True, written=static)


def input_zero_point(scheme: WeightScheme) -> TensorSpec:
    """The zero point of static asymmetric activations."""
    act = scheme.activation
    written = act is not None and not act.dynamic and not act.symmetric
    return TensorSpec(((), (1,)), ("int8", "int32", *FLOATS), optional=True, written=written)


def holds_eight_bit(headers: Headers) -> bool:
    """Whether a module's weight is stored in bytes."""
    weight = headers.get("weight")
    return weight is not None and weight.dtype in _STORED


def weight_shape(headers: Headers) -> tuple[int, int]:
    """(N, K) of the ``weight`` tensor, (0, 0) when it is no matrix."""
    weight = headers.get("weight")
    return (weight.shape[0], weight.shape[1]) if weight is not None and len(weight.shape) == 2 else (0, 0)


def eight_bit_step(scheme: WeightScheme) -> ShardStep:
    """vLLM's own methods cut whole blocks in both directions."""
    step = canonical_step(scheme)
    return ShardStep(scheme.block[0], step.columns, "block", "block") if scheme.block else step


def eight_bit_bytes(scheme: WeightScheme, n: int, k: int, full_k: int) -> int:
    """Bytes that vLLM's own method keeps for an (n, k) shard: scales in float32."""
    if scheme.block is not None:
        return n * k + 4 * -(-n // scheme.block[0]) * -(-k // scheme.block[1])
    static = static_input_bytes(scheme)
    if scheme.group_size == PER_TENSOR:
        return n * k + 4 + static
    groups = scheme.groups(full_k) if scheme.act_order else scheme.groups(k)
    return n * k + 4 * n * groups + static


def static_input_bytes(scheme: WeightScheme) -> int:
    """Bytes of a static activation's scale and, where it is asymmetric, zero point as vLLM's INT8 method keeps them."""
    act = scheme.activation
    if act is None or act.dynamic:
        return 0
    return 4 if act.symmetric else 5


def fp8_in_tree(scheme: WeightScheme, host: Host) -> str | None:
    """Why vLLM's own FP8 methods do not serve the scheme on ``host``."""
    assert isinstance(scheme.value, Float)
    if scheme.group_size > 0 and scheme.block is None:
        return "FP8 with grouped weights"
    if host.device == "cuda":
        return None
    if scheme.activation is None:
        return "weight-only FP8 on a CPU"
    if scheme.block:
        return fp8_blocks_on_cpu(scheme.block, host)
    if scheme.group_size == PER_TENSOR or not scheme.activation.dynamic:
        return "compressed-tensors FP8 other than dynamic per channel on a CPU"
    return None


def fp8_blocks_on_cpu(block: tuple[int, int], host: Host, *, experts: bool = False) -> str | None:
    """Why vLLM's own kernels do not serve blocks of FP8 on a CPU.

    Source: vLLM 0.32 and 0.33, ``CPUFp8BlockScaledMMKernel``, ``CPUFp8W8A8BlockScaledMMKernel`` and ``CPUExpertsFp8``.
    """
    if not host.has_amx:
        return "FP8 blocks on a CPU without AMX"
    if block[1] != 128 or block[0] % 32 or (experts and block[0] != 128):
        return f"FP8 {'experts ' if experts else ''}in blocks of {block[0]} x {block[1]} on a CPU"
    return None


def block_rows(scales: torch.Tensor, block_n: int, n: int) -> torch.Tensor:
    """(ceil(N / block_n), G) block scales to (N, G): each row of blocks repeated over its outputs."""
    return scales.repeat_interleave(block_n, dim=0)[:n].contiguous()
