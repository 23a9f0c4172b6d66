"""Every environment variable of the project, in one table, and the functions that read them. No torch.

An empty variable counts as unset. Variables marked internal are set by this project for its own child processes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass


class SettingError(ValueError):
    """An environment variable holds a value that is none of its values.

    Attributes:
        name: of the variable.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True)
class Variable:
    """One environment variable.

    Attributes:
        about: what it does, in one sentence.
        values: the values it may have; empty where any text is allowed, which ``form`` then describes.
        default: what holds without it; with ``values``, one of them.
        form: what a free text is, e.g. ``file``.
        reader: the part of the project that reads it.
        internal: set by this project for its own processes, not by users.
    """

    name: str
    about: str
    values: tuple[str, ...] = ()
    default: str = ""
    form: str = ""
    reader: str = "kernels"
    internal: bool = False


LEVELS = ("scalar", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx")
_SWITCH = ("0", "1")

VARIABLES: tuple[Variable, ...] = (
    Variable("VQP_CPU_LIBRARY", "Another build of libvqp_cpu.so.", form="file"),
    Variable(
        "VQP_CPU_ISA",
        "The CPU kernels use no instruction beyond this level. Unset, they use the best level of the CPU except amx.",
        values=LEVELS,
    ),
    Variable(
        "VQP_CPU_W4A8",
        "Weight-only layers with integer weights of 2 to 7 bits quantize their activations to INT8 on a CPU.",
        _SWITCH, "0",
    ),
    Variable("VQP_CUDA_LIBRARY", "Another build of libvqp_cuda.so.", form="file"),
    Variable(
        "VQP_CUDA_KERNELS",
        "Layers on an NVIDIA GPU run on this project's CUDA kernels (1) or never do (0); unset, they run on vLLM's own "
        "kernels, but for those of this project that are proven on the GPU.",
        _SWITCH,
    ),
    Variable(
        "VQP_CUDA_PDL",
        "CUDA kernels load their first weights while the preceding kernel still runs (programmatic dependent launch).",
        _SWITCH, "1",
    ),
    Variable(
        "VQP_CUDA_FP8",
        "FP8 weights on a GPU: FP8 activations where the checkpoint has them, or always 16-bit activations.",
        ("w8a8", "w8a16"), "w8a8",
    ),
    Variable(
        "VQP_CUDA_FP8_FAST",
        "FP8 sums stay in the tensor cores, which keep fewer bits of them than FP32.",
        _SWITCH, "0",
    ),
    Variable(
        "VQP_VERDICTS",
        "Folder of the verdicts of `vllm-quant verify-kernels`: which CUDA kernels are right and fast on this GPU.",
        default="~/.cache/vllm-quant-plugin/verdicts", form="folder",
    ),
    Variable(
        "VQP_LINEAR_KERNELS",
        "Where this project's kernels go in vLLM's list of linear kernels: last (first on a CPU without AVX-512, where "
        "vLLM's own kernel cannot run), first, or not in it.",
        ("last", "first", "off"), "last", reader="plugin",
    ),
    Variable(
        "VQP_ENGINE_WAIT",
        "How the engine's processes wait for each other: sleep, or spin as vLLM does alone.",
        ("sleep", "spin"), "sleep", reader="plugin",
    ),
    Variable("VQP_VERBOSE", "Print the output of libraries, else suppressed.", _SWITCH, "0", reader="plugin"),
    Variable(
        "VQP_BACKENDS_HOME",
        "Folder of the environments that `vllm-quant backends` makes.",
        default="~/.cache/vllm-quant-plugin/backends", form="folder", reader="plugin",
    ),
    Variable(
        "VQP_TORCH_CPU_LINKS",
        "Page or folder with the wheels of torch's CPU build, where the package index has none.",
        default="https://download.pytorch.org/whl/cpu/torch/", form="URL or folder", reader="plugin, scripts/uv.sh",
    ),
    Variable(
        "VQP_LEDGER",
        "SQLite file in which `vllm-quant serve` records plan and actual of each launch.",
        default="~/.local/state/vllm-quant/launches.sqlite", form="file", reader="serve",
    ),
    Variable(
        "VQP_ADMIN_TOKEN",
        "Bearer token of the admin server, required on any address but loopback.",
        form="secret", reader="serve",
    ),
    Variable("VQP_SERVE_MODEL", "The 16-bit model that `make gpu-check` serves.", form="folder",
             default="the bundled model", reader="scripts/gpu_check.py"),
    Variable("VQP_SCREENSHOT", "Where a test keeps its picture of the status page.", form="file", reader="tests"),
    Variable("VQP_RUN_DIR", "The supervisor's private folder.", form="folder", reader="serve", internal=True),
    Variable("VQP_SUPERVISOR_PID", "The supervisor's process.", form="process id", reader="serve", internal=True),
    Variable("VQP_API_KEYS", "The server's API keys, as JSON.", form="secret", reader="serve", internal=True),
    Variable("VQP_EXACT_TRACE", "The exact planner's worker prints tracebacks.", _SWITCH, "0", reader="serve",
             internal=True),
    Variable("VQP_GPU_PROGRESS", "File in which the GPU tests report their progress.", form="file",
             reader="tests/gpu", internal=True),
)  # fmt: skip
BY_NAME = {variable.name: variable for variable in VARIABLES}


def text(name: str) -> str | None:
    """The value of ``name``, None where it is unset or empty. Raises KeyError for a variable outside the table."""
    return os.environ.get(BY_NAME[name].name) or None


def choice(name: str) -> str:
    """One of the variable's values, or its default ("" where it has none).

    Raises:
        SettingError: it holds another value.
    """
    variable = BY_NAME[name]
    value = text(name)
    if value is None:
        return variable.default
    if value not in variable.values:
        allowed = ", ".join(variable.values[:-1]) + f" or {variable.values[-1]}"
        raise SettingError(name, f"{name}={value}: must be {allowed}")
    return value


def switch(name: str) -> bool:
    """Whether a variable with the values 0 and 1 is 1. Raises SettingError for another value."""
    return choice(name) == "1"


def pop(name: str) -> str | None:
    """Remove ``name`` from the environment, so that no child process inherits it; returns its value."""
    return os.environ.pop(BY_NAME[name].name, None)


def batch_invariant() -> bool:
    """Whether vLLM was asked for results that do not depend on the batch (``VLLM_BATCH_INVARIANT=1``)."""
    return os.environ.get("VLLM_BATCH_INVARIANT", "0") == "1"
