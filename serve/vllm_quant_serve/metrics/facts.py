"""What is known of the served model before the first request: scheme, bits, bytes. No torch.

An unknown value is ``None``, and its metric is absent.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_quant_kernels.env import SettingError
from vllm_quant_kernels.kernel import Device
from vllm_quant_plugin.checkpoint import Checkpoint, read_checkpoint
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.formats import parse_quantization_config
from vllm_quant_plugin.kernel_use import KernelUse, uses_of_checkpoint
from vllm_quant_plugin.schemes import ModelScheme
from vllm_quant_serve.metrics.accounting import ModelSize, model_size

UNQUANTIZED = "16-bit"


@dataclass(frozen=True)
class ModelFacts:
    """Facts about the model being served.

    Attributes:
        method: the vLLM quantization method, ``none`` without one.
        scheme: the scheme of most modules, e.g. ``INT4 g128 asym``; ``16-bit`` when not quantized.
        weight_bits: nominal bits per weight of those modules.
        checkpoint_bytes: bytes of all tensors on disk.
        size: what one token costs, for utilization.
        kernels: what runs the quantized layers where this plugin serves them.
    """

    method: str
    scheme: str | None = None
    weight_bits: int | None = None
    checkpoint_bytes: int | None = None
    size: ModelSize | None = None
    kernels: tuple[KernelUse, ...] = ()


def read_facts(vllm_config: Any) -> ModelFacts:
    """The facts behind a ``VllmConfig``. Nothing is downloaded; a model that cannot be read raises nothing."""
    model_config = vllm_config.model_config
    method = str(getattr(model_config, "quantization", None) or "none")
    checkpoint = _checkpoint(str(model_config.model), getattr(model_config, "revision", None))
    scheme, bits = _scheme(vllm_config, method, checkpoint)
    if checkpoint is None or not checkpoint.tensors:
        return ModelFacts(method, scheme, bits)
    kernels = _kernels(vllm_config, checkpoint)
    return ModelFacts(method, scheme, bits, checkpoint.nbytes, model_size(checkpoint, bits), kernels)


def _kernels(vllm_config: Any, checkpoint: Checkpoint) -> tuple[KernelUse, ...]:
    """Of the plugin's own configs; none for vLLM's methods, and where the device is not known."""
    model = getattr(getattr(vllm_config, "quant_config", None), "model", None)
    device = str(getattr(getattr(vllm_config, "device_config", None), "device_type", "") or "")
    if not isinstance(model, ModelScheme) or not device:
        return ()
    try:
        return tuple(uses_of_checkpoint(checkpoint, model, Device(device)))
    except (CheckpointError, SettingError):
        return ()


def _checkpoint(model: str, revision: str | None) -> Checkpoint | None:
    folder: Path | None = Path(model)
    if folder is not None and not folder.is_dir():
        folder = _cached(model, revision)
    if folder is None:
        return None
    try:
        return read_checkpoint(folder, need_tensors=False)
    except CheckpointError:
        return None


def _cached(model: str, revision: str | None) -> Path | None:
    """The folder in the Hub cache of a model that vLLM has just loaded; the Hub is never asked."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def _scheme(vllm_config: Any, method: str, checkpoint: Checkpoint | None) -> tuple[str | None, int | None]:
    # The plugin's own configs carry the scheme, online quantization included.
    model = getattr(getattr(vllm_config, "quant_config", None), "model", None)
    if not isinstance(model, ModelScheme):
        model = None
        config = checkpoint.quantization_config if checkpoint else None
        if config:
            try:
                model = parse_quantization_config(config)
            except CheckpointError:
                return None, None
        elif method == "none" and checkpoint is not None:
            return UNQUANTIZED, 16
    if model is None:
        return None, None
    scheme = model.default
    if scheme is None:
        counted = Counter(rule.scheme for rule in model.rules if rule.scheme is not None)
        if not counted:
            return None, None
        scheme = counted.most_common(1)[0][0]
    return scheme.describe(), scheme.bits
