"""Makes and keeps the verdict on one GPU. No torch in this process."""

from __future__ import annotations

import datetime

from vllm_quant_kernels.cuda.verify import machine, proven, store
from vllm_quant_kernels.cuda.verify.families import FAMILIES, SPEED_CLASSES
from vllm_quant_kernels.cuda.verify.machine import Gpu, Key
from vllm_quant_kernels.cuda.verify.run import Verification
from vllm_quant_kernels.cuda.verify.verdict import Finding, Speed, Verdict
from vllm_quant_plugin.console import Progress, no_progress
from vllm_quant_plugin.errors import BackendError

# Registers vLLM's kernels in the child that times.
PEERS = ("vllm_quant_plugin.verify_kernels.peers",)


def required_key(gpu: Gpu) -> Key:
    """What a verdict on ``gpu`` holds for. Raises BackendError where there is no CUDA library to verify."""
    key = machine.key_of(gpu)
    if key is None:
        raise BackendError("libvqp_cuda.so is not there: nothing was verified", "build it: `make` with nvcc on PATH")
    return key


def make_verdict(gpu: Gpu, seconds: float, progress: Progress = no_progress) -> Verdict:
    """Verify every family on ``gpu`` within about ``seconds`` and keep the verdict.

    Until there is one, a verdict of nothing is kept: what takes the machine down is not tried again unasked.

    Raises:
        BackendError: there is no CUDA library.
        OSError: the verdict cannot be written.
    """
    done, total = 0, len(FAMILIES) + len(SPEED_CLASSES)

    def step(name: str, _: Finding | Speed) -> None:
        nonlocal done
        done += 1
        progress(name, done, total)

    key = required_key(gpu)
    if store.read(key)[0] is None:
        store.write(Verdict(key, datetime.datetime.now().astimezone().isoformat(timespec="seconds"), {}))
    verdict = Verification(gpu, key, seconds, modules=PEERS, found=step, timed=step).run()
    store.write(verdict)
    proven.refresh()
    return verdict
