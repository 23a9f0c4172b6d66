"""Kernels before a launch: verified once per model of GPU, within bounded time, and named. No torch here.

Nothing that goes wrong keeps the server from starting: without a verdict vLLM's own kernels serve.
"""

from __future__ import annotations

from pathlib import Path

from vllm_quant_kernels import env
from vllm_quant_kernels.cuda.verify import machine, store
from vllm_quant_kernels.kernel import Device
from vllm_quant_plugin.checkpoint import read_checkpoint
from vllm_quant_plugin.errors import VqpError
from vllm_quant_plugin.formats import Host
from vllm_quant_plugin.formats.host import DeviceType
from vllm_quant_plugin.formats.registry import stored_model
from vllm_quant_plugin.formats.verdict import judge_checkpoint
from vllm_quant_plugin.kernel_use import uses_of_checkpoint
from vllm_quant_plugin.verify_kernels.proof import make_verdict
from vllm_quant_plugin.verify_kernels.summary import one_line
from vllm_quant_serve.flags import ServeArgs
from vllm_quant_serve.supervise.report import Report

SECONDS = 180.0


def prove_kernels(report: Report, seconds: float = SECONDS) -> bool:
    """One line on the kernels of each visible model of GPU; verifies them where that was never tried.

    Says nothing without a GPU or the CUDA library, and where VQP_CUDA_KERNELS decides.

    Returns:
        Whether a verdict was made: what was planned before may have counted with other kernels.
    """
    made = False
    for gpu in () if env.text("VQP_CUDA_KERNELS") else {gpu.name: gpu for gpu in machine.local_gpus()}.values():
        try:
            made |= _prove(report, gpu, seconds)
        except Exception as error:  # a full disk, a driver that fails: whatever it is, the server starts
            report.event("kernels", f"CUDA kernels on {gpu.name} were not verified: {error}; vLLM's kernels serve")
    return made


def _prove(report: Report, gpu: machine.Gpu, seconds: float) -> bool:
    key = machine.key_of(gpu)
    if key is None:
        return False
    verdict, reason = store.read(key)
    made = verdict is None
    if verdict is None:
        report.event("verifying", f"verifying the CUDA kernels on {gpu.name}, up to {seconds:.0f} s ({reason})")
        verdict = make_verdict(gpu, seconds)
    report.event("kernels", one_line(verdict), verdict=verdict.to_json())
    return made


def kernel_rows(words: ServeArgs, device: DeviceType) -> list[dict[str, str]]:
    """The kernels of a folder's quantized layers where this plugin serves them, for the status page; else none."""
    folder, asked = Path(words.model), words.text("--quantization") or ""
    try:
        checkpoint = read_checkpoint(folder) if folder.is_dir() else None
        model = stored_model(checkpoint) if checkpoint is not None else None
        if checkpoint is None or model is None:
            return []
        ours = asked.startswith("vqp_")
        if not asked:
            ours = judge_checkpoint(checkpoint, model, Host.local(device)).server == "plugin"
        return [use.to_json() for use in uses_of_checkpoint(checkpoint, model, Device(device))] if ours else []
    except (VqpError, env.SettingError):  # whoever loads the model says what is wrong with it
        return []
