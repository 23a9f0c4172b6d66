"""A model as the planner needs it: read once, for any devices. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_quant_plugin.architecture.arch import ModelArch
from vllm_quant_plugin.architecture.families import describe
from vllm_quant_plugin.architecture.headers import with_headers
from vllm_quant_plugin.checkpoint import Checkpoint
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.formats.registry import stored_model
from vllm_quant_plugin.formats.verdict import Part, parts_of
from vllm_quant_plugin.online import quantizes_online
from vllm_quant_plugin.schemes import ModelScheme
from vllm_quant_serve.plan.model.online import scheme_while_loading
from vllm_quant_serve.plan.model.source import read_model
from vllm_quant_serve.plan.request import PlanRequest

MOST_LAYERS = 10_000
_LAYERS = re.compile(r"(^|_)layers$|^n_layer$|^depth$")


@dataclass(frozen=True)
class Model:
    """What is served.

    Attributes:
        scheme: how the weights are stored or, with ``online``, quantized while they load; None for 16 bits.
        parts: its quantized parts, of which each kind has methods of its own; empty with ``online``.
        side_file: the file beside config.json that alone describes the quantization, "" where config.json does.
        notes: human-readable remarks on how it was read.
    """

    arch: ModelArch
    scheme: ModelScheme | None
    online: bool
    parts: tuple[Part, ...]
    side_file: str
    notes: tuple[str, ...]

    @property
    def architecture(self) -> str:
        return self.arch.architecture or self.arch.model_type


def load_model(request: PlanRequest, checkpoint: Checkpoint | None = None) -> Model:
    """The model of a request.

    Args:
        checkpoint: where it was read already, or a config without a folder; by default ``request.model`` is read.

    Raises:
        CheckpointError: it cannot be read, or ``--quantization`` does not apply to it.
        NoFeasiblePlanError: vLLM does not serve the architecture any more.
    """
    notes = []
    if checkpoint is None:
        checkpoint, note = read_model(request.model, request.revision)
        notes = [note] if note else []
    if not isinstance(checkpoint.config, dict):
        raise CheckpointError("config.json: expected a JSON object", "copy the file again")
    _refuse_endless(checkpoint.config)
    arch = describe(checkpoint.config)
    scheme = stored_model(checkpoint)
    if checkpoint.tensors:
        arch = with_headers(arch, checkpoint, scheme)
        if arch.guessed:
            notes.append(f"it has {arch.guessed}: the cache may be smaller than the plain attention that is assumed")
    elif arch.guessed:
        raise CheckpointError(
            f"model_type {arch.model_type!r} is unknown and has {arch.guessed}: config.json does not give its size",
            "give a folder with its safetensors, or the Hub id: their headers do",
        )
    elif arch.unsized:
        towers = " and ".join(arch.unsized)
        notes.append(f"the {towers} tower is not counted: config.json does not give its tensors")
    online = None if scheme is not None else _online_method(request)
    if online is not None:
        scheme = scheme_while_loading(online, request.quantization_config or {})
    parts = parts_of(checkpoint, scheme) if scheme is not None and online is None else []
    return Model(arch, scheme, online is not None, tuple(parts), checkpoint.side_file, (*notes, *arch.notes))


def _refuse_endless(config: Mapping[str, Any]) -> None:
    """Refuse a number of layers that no model has: each layer is described on its own."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            _refuse_endless(value)
        elif _LAYERS.search(key) and isinstance(value, int | float) and value > MOST_LAYERS:
            raise CheckpointError(
                f"config.json: {key} is more than the {MOST_LAYERS:,} layers that a plan considers", "correct the file"
            )


def _online_method(request: PlanRequest) -> str | None:
    """The method that quantizes while loading: by ``--quantization`` or by the overridden ``quant_method``."""
    if request.quantization is not None:
        return request.quantization
    named = str((request.quantization_config or {}).get("quant_method") or "").lower()
    return named if quantizes_online(named) else None
