"""Headers of the checkpoint that vLLM is about to load, from a folder or from the Hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vllm_quant_plugin import compat
from vllm_quant_plugin.checkpoint import by_module, read_tensors
from vllm_quant_plugin.formats.base import TensorHeader


@dataclass(frozen=True)
class HubTensor:
    """A tensor of a model on the Hub, whose headers vLLM reads by range requests."""

    dtype: str
    shape: tuple[int, ...]


def stored_modules(model: str, revision: str | None) -> Iterator[tuple[str, Mapping[str, TensorHeader]]]:
    """Names and headers of the modules of ``model``; none where it has no safetensors.

    Raises:
        CheckpointError: a folder's files are damaged.
    """
    folder = Path(model)
    if folder.exists():
        yield from by_module(read_tensors(folder) if folder.is_dir() else {})
        return
    found = compat.hub_tensors(model, revision)
    yield from by_module({name: HubTensor(entry["dtype"], tuple(entry["shape"])) for name, entry in found.items()})
