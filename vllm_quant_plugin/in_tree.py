"""What vLLM serves without this plugin, from reading vLLM 0.32 and trying each on its CPU build. No torch.

Used to claim a checkpoint automatically only when in-tree vLLM rejects it, and by ``inspect``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vllm_quant_plugin.scheme import PER_CHANNEL, PER_TENSOR, ModelScheme, Scheme

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Host:
    """Where the model will run.

    Attributes:
        device: ``cpu`` or ``cuda``.
        cpu_flags: x86 feature names as in /proc/cpuinfo; only for ``cpu``.
    """

    device: Device
    cpu_flags: frozenset[str] = frozenset()

    @staticmethod
    def local(device: Device) -> Host:
        """This machine, taken as ``device``."""
        return Host(device, _cpu_flags() if device == "cpu" else frozenset())


def _cpu_flags() -> frozenset[str]:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return frozenset()


def _distinct(model: ModelScheme) -> Iterable[Scheme]:
    found = [model.default, *(rule.scheme for rule in model.rules)]
    return dict.fromkeys(s for s in found if s is not None)


def _awq(scheme: Scheme, host: Host) -> str | None:
    if scheme.bits != 4:
        return f"AWQ with {scheme.bits} bits (4 only)"
    if scheme.symmetric and host.device == "cuda":
        return "AWQ without zero points"
    if host.device == "cpu" and "avx512f" not in host.cpu_flags:
        return "AWQ on a CPU without AVX-512"
    return None


def _gptq(scheme: Scheme, host: Host) -> str | None:
    if not scheme.symmetric:
        return "asymmetric GPTQ"
    allowed = (4,) if host.device == "cpu" else (4, 8)
    if scheme.bits not in allowed:
        return f"GPTQ with {scheme.bits} bits ({' and '.join(map(str, allowed))} only)"
    if scheme.act_order and scheme.group_size != PER_CHANNEL:
        return "GPTQ act-order with groups"
    if scheme.group_size not in (PER_CHANNEL, 32, 64, 128):
        return f"GPTQ with group_size {scheme.group_size}"
    if host.device == "cpu" and "avx512f" not in host.cpu_flags:
        return "GPTQ on a CPU without AVX-512"
    return None


def _fp8(scheme: Scheme, host: Host) -> str | None:
    if host.device == "cuda":
        return None
    if scheme.storage == "fp8":
        return "FP8 checkpoints on a CPU"
    if scheme.activation is None:
        return "weight-only FP8 on a CPU"
    if scheme.block or scheme.group_size == PER_TENSOR or not scheme.activation.dynamic:
        return "compressed-tensors FP8 other than dynamic per channel on a CPU"
    return None


def _int_quantized(scheme: Scheme, host: Host) -> str | None:
    if scheme.activation is None:
        return "compressed-tensors W8A16 int-quantized"
    if scheme.group_size not in (PER_CHANNEL, PER_TENSOR):
        return "INT8 W8A8 with grouped weights"
    return None


def _pack_quantized(scheme: Scheme, host: Host) -> str | None:
    if host.device == "cpu" and scheme.bits != 4:
        return f"pack-quantized with {scheme.bits} bits on a CPU (4 only)"
    if scheme.act_order and scheme.group_size != PER_CHANNEL:
        return "act-order with groups"
    return None


_CHECKS = {
    "awq": _awq,
    "gptq": _gptq,
    "fp8": _fp8,
    "float-quantized": _fp8,
    "int-quantized": _int_quantized,
    "pack-quantized": _pack_quantized,
}


def has_experts(config: Any) -> bool:
    """Whether a model config (config.json as a mapping, or transformers' object) describes a mixture of experts."""
    get = config.get if isinstance(config, Mapping) else lambda name: getattr(config, name, None)
    return any(get(name) for name in ("num_local_experts", "num_experts", "n_routed_experts"))


def why_in_tree_rejects(model: ModelScheme, host: Host, *, experts: bool = False) -> str | None:
    """The first reason for which in-tree vLLM does not serve ``model`` on ``host``, None when it does.

    Args:
        experts: the model is a mixture of experts.
    """
    if experts and host.device == "cpu" and model.method in ("awq", "gptq"):
        return f"{model.method.upper()} experts on a CPU"
    for scheme in _distinct(model):
        reason = _CHECKS[scheme.storage](scheme, host) if scheme.storage in _CHECKS else None
        if reason:
            return reason
    return None


def plugin_method(model: ModelScheme) -> str | None:
    """Our method's name for a checkpoint, None when only its kernels take part (pack-quantized)."""
    if model.method in ("awq", "gptq", "fp8"):
        return f"vqp_{model.method}"
    kinds = {s.storage for s in _distinct(model)}
    if kinds <= {"float-quantized"}:
        return "vqp_fp8"
    if kinds <= {"int-quantized"}:
        return "vqp_int8"
    return None
