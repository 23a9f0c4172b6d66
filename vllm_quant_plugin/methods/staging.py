"""Checkpoint tensors on their way into a layer.

A quantized layer registers one empty placeholder parameter per checkpoint tensor, so that
vLLM's model code finds the names it looks for. What is loaded into a placeholder is kept whole
(safetensors hands out memory-mapped views, so this costs no copy). When the last tensor that
the layer expects has arrived, a callback converts them all and they are let go: never more than
one layer is unpacked at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch

Key = Hashable


class Staging:
    """Tensors of one layer by (part, leaf).

    Args:
        alternatives: sets of (part, leaf); when all of one set have been loaded nothing more can
            come, and ``on_complete`` is called at once. Without any, only ``finish`` completes.
        on_complete: converts what ``tensors`` holds; called once.
    """

    def __init__(self, alternatives: Iterable[Iterable[tuple[Key, str]]], on_complete: Callable[[], None]) -> None:
        self._missing = [set(alternative) for alternative in alternatives]
        self._on_complete = on_complete
        self._tensors: dict[Key, dict[str, torch.Tensor]] = {}
        self.done = False

    @property
    def empty(self) -> bool:
        return not self._tensors

    def parts(self) -> list[Key]:
        return list(self._tensors)

    def tensors(self, part: Key) -> dict[str, torch.Tensor]:
        """Tensors of ``part`` by leaf; empty when none has come."""
        return self._tensors.get(part, {})

    def put(self, part: Key, leaf: str, tensor: torch.Tensor) -> None:
        """Keep ``tensor``; completes the layer when it was the last one expected."""
        if self.done:
            return
        self._tensors.setdefault(part, {})[leaf] = tensor
        for missing in self._missing:
            missing.discard((part, leaf))
        if any(not missing for missing in self._missing):
            self.finish()

    def finish(self) -> None:
        """Convert now, with what has come. Does nothing the second time."""
        if self.done:
            return
        self.done = True
        self._on_complete()
        self._tensors.clear()


def placeholder(loader: Callable[..., Any], dtypes: Sequence[str]) -> torch.nn.Parameter:
    """An empty parameter whose only purpose is its name and its ``weight_loader``.

    Args:
        dtypes: those a checkpoint may bring, as torch spells them. vLLM warns of each tensor whose dtype is not the
            parameter's, unless a float is widened.
    """
    dtype = getattr(torch, "float32" if "float32" in dtypes else dtypes[0])
    parameter = torch.nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False)
    parameter.weight_loader = loader  # type: ignore[attr-defined]
    return parameter
