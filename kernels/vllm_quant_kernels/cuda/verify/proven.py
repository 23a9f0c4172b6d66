"""What the registry asks: may a CUDA kernel of this project serve a layer, by this machine's verdicts? No torch."""

from __future__ import annotations

import functools
import logging

from vllm_quant_kernels.cuda.verify import machine, store
from vllm_quant_kernels.cuda.verify.families import speed_class
from vllm_quant_kernels.cuda.verify.verdict import Verdict
from vllm_quant_kernels.kernel import Device
from vllm_quant_kernels.scheme import WeightScheme

VERIFY = "vllm-quant verify-kernels"


@functools.cache
def _verdict(gpu: machine.Gpu) -> tuple[Verdict | None, str]:
    """The verdict on a GPU, or why there is none; a file that is no verdict is reported once."""
    key = machine.key_of(gpu)
    if key is None:
        return None, "the CUDA library is not there"
    found, reason = store.read(key)
    if found is None and str(store.folder()) in reason:
        logging.getLogger(__name__).warning("%s; %s makes a new one", reason, VERIFY)
    return found, reason


def refresh() -> None:
    """Read GPUs, library and verdicts again at the next question."""
    for cached in (_verdict, machine.local_gpus, machine.library_hash):
        cached.cache_clear()


def why_not(kernel: str, scheme: WeightScheme, device: Device) -> str | None:
    """Why ``kernel`` does not serve a layer of ``scheme`` by the verdicts of this machine; None where it does.

    A process may run on any of the GPUs that it sees: all of them with the device's capability must agree.

    Args:
        kernel: ``Kernel.name``, e.g. ``cuda-wna16``.
    """
    gpus = [gpu for gpu in machine.local_gpus() if device.capability in (None, gpu.capability)]
    if not gpus:
        return "not proven: no such GPU is here"
    timed = speed_class(kernel, scheme)
    for gpu in {gpu.name: gpu for gpu in gpus}.values():
        verdict, reason = _verdict(gpu)
        found = f"{reason}; run {VERIFY}" if verdict is None else verdict.why_not(timed)
        if found is not None:
            return f"not proven: {found}" if verdict is None or verdict.wrong(timed) else found
    # It gathers activations one by one, which the timings of layers in order say nothing of.
    return "not timed with act-order" if scheme.act_order else None
