"""Which kernel a layer of this plugin runs on here, and why it is not one of this project's own. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from vllm_quant_kernels.kernel import Device
from vllm_quant_kernels.registry import NoKernelError, choose, kernels
from vllm_quant_plugin.checkpoint import Checkpoint
from vllm_quant_plugin.formats import get_format, stored_scheme
from vllm_quant_plugin.formats.registry import module_shape
from vllm_quant_plugin.schemes import ModelScheme, StoredScheme


@dataclass(frozen=True)
class KernelUse:
    """The kernel of layers of one kind.

    Attributes:
        kernel: its label, e.g. ``vqp W4A16`` or ``vLLM Marlin``.
        scheme: e.g. ``INT4 g128 sym``.
        why: why this project's kernel for the kind of device does not run them; "" where it does, or there is none.
    """

    kernel: str
    scheme: str
    why: str = ""

    def sentence(self) -> str:
        """In one line."""
        return f"{self.scheme}: {self.kernel}" + (f", not this project's kernel: {self.why}" if self.why else "")

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def kernel_use(scheme: StoredScheme, n: int, k: int, device: Device, dtype: str = "bfloat16") -> KernelUse:
    """The kernel of an (n, k) layer of ``scheme`` when this plugin serves it; ``vLLM`` where it reads none.

    Raises:
        SettingError: an environment variable that decides holds an unknown value.
    """
    if not get_format(scheme).readable(scheme):
        return KernelUse("vLLM", scheme.describe())
    try:
        found = choose(scheme.weight, n, k, device, dtype)
    except NoKernelError:
        return KernelUse("none", scheme.describe())
    own = [kernel.name for kernel in kernels(device) if kernel.name.startswith(f"{device.type}-")]
    # By descending priority: the last that was asked is the one that would have served.
    asked = [found.reasons[name] for name in own if name in found.reasons]
    why = "" if found.kernel.name in own or not asked else asked[-1]
    return KernelUse(found.kernel.label_on(scheme.weight, n, k, device, dtype), scheme.describe(), why)


def kernel_uses(layers: Iterable[tuple[StoredScheme, int, int]], device: Device) -> list[KernelUse]:
    """Of many layers, each kind once, the most frequent first. Raises as :func:`kernel_use`."""
    counted = Counter(layers)
    kinds: Counter[KernelUse] = Counter()
    for (scheme, n, k), count in counted.items():
        kinds[kernel_use(scheme, n, k, device)] += count
    return [use for use, _ in kinds.most_common()]


def uses_of_checkpoint(checkpoint: Checkpoint, model: ModelScheme, device: Device) -> list[KernelUse]:
    """Of the quantized matrices of a checkpoint, as this plugin would serve them. Raises as :func:`kernel_use`."""
    layers = []
    for name, tensors in checkpoint.modules():
        scheme = stored_scheme(name, tensors, model)
        if scheme is not None:
            n, k = module_shape(tensors, scheme)
            layers += [(scheme, n, k)] if n and k else []
    return kernel_uses(layers, device)
