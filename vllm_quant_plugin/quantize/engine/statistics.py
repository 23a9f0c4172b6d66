"""Statistics of a layer's inputs: which modules share one, what produces it, its second moment, its ranges."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from vllm_quant_plugin.formats.fused import siblings
from vllm_quant_plugin.quantize.engine.layered_model import run_layer
from vllm_quant_plugin.quantize.modules import MOMENT_BYTES
from vllm_quant_plugin.quantize.step import SILENT, Step

_EXPERT = re.compile(r"\.experts\.\d+\.")


def weight_of(layer: nn.Module, name: str) -> torch.Tensor:
    """The weight of a module of the layer, without gradient; writing into it changes the module."""
    weight = layer.get_submodule(name).weight
    assert isinstance(weight, torch.Tensor)
    return weight.data


@dataclass
class Group:
    """Linear modules of one layer that multiply the same input.

    Attributes:
        names: module names within the layer, in order of execution.
        producer: name of the module whose output the input is (a norm), None when it is computed.
    """

    names: list[str]
    producer: str | None = None


@dataclass
class Moments:
    """Second moment of a group's input.

    Attributes:
        hessian: float32 (K, K), the sum of x x^T over tokens.
        tokens: number of tokens seen.
    """

    hessian: torch.Tensor
    tokens: int = 0

    @property
    def signal(self) -> int:
        """``tokens``, or 0 when all they brought was zeros."""
        return self.tokens if bool(self.hessian.any()) else 0


def weights_in(layer: nn.Module, groups: Sequence[Group]) -> int:
    """The number of weights in the groups' modules."""
    return sum(weight_of(layer, name).numel() for group in groups for name in group.names)


class _Enough(Exception):
    """Raised inside a forward pass when nothing behind this point is needed."""


@dataclass
class _Trace:
    inputs: dict[int, Group] = field(default_factory=dict)
    outputs: dict[int, str] = field(default_factory=dict)
    # Keeps tensors alive, so that no two share an id.
    kept: list[torch.Tensor] = field(default_factory=list)


def find_groups(
    layer: nn.Module, wanted: Collection[str], hidden: torch.Tensor, kwargs: Mapping[str, Any]
) -> list[Group]:
    """The wanted linear modules grouped by the tensor they read, in order of execution."""
    trace, handles = _Trace(), []

    def before(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            trace.kept.append(args[0])
            group = trace.inputs.setdefault(id(args[0]), Group([], trace.outputs.get(id(args[0]))))
            if name not in group.names:
                group.names.append(name)

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, out: Any) -> None:
            if isinstance(out, torch.Tensor):
                trace.kept.append(out)
                trace.outputs[id(out)] = name

        return hook

    for name, module in layer.named_modules():
        if name in wanted:
            handles.append(module.register_forward_pre_hook(before(name)))
        elif name and not list(module.children()):
            handles.append(module.register_forward_hook(after(name)))
    try:
        run_layer(layer, hidden, kwargs)
    finally:
        for handle in handles:
            handle.remove()
    groups = list(trace.inputs.values())
    seen = {name for group in groups for name in group.names}
    return groups + _idle_groups([name for name in wanted if name not in seen])


def _idle_groups(names: Sequence[str]) -> list[Group]:
    """Modules that no token of the first batch reached (experts): grouped as vLLM fuses them."""
    groups: list[Group] = []
    for name in names:
        if not any(name in group.names for group in groups):
            groups.append(Group([part for part in siblings(name) if part in names]))
    return groups


def split_passes(layer: nn.Module, groups: Sequence[Group]) -> list[list[Group]]:
    """Groups that can be measured in one pass: the same matrix of several experts, as memory for their moments allows.

    Other groups stay alone and in order: each then sees what those before it, already rounded, produce.
    """
    stages: dict[str, list[Group]] = {}
    for group in groups:
        stages.setdefault(_EXPERT.sub(".experts.*.", group.names[0]), []).append(group)
    passes: list[list[Group]] = []
    for stage in stages.values():
        used = MOMENT_BYTES
        for group in stage:
            need = 4 * weight_of(layer, group.names[0]).shape[1] ** 2
            if used + need > MOMENT_BYTES:
                passes.append([])
                used = 0
            passes[-1].append(group)
            used += need
    return passes


@contextmanager
def _watched(layer: nn.Module, step: Step) -> Iterator[None]:
    """During a pass through the layer, ``step`` is told of every linear module that it has passed."""
    linear = [module for module in layer.modules() if isinstance(module, nn.Linear)]
    passed = 0

    def hook(_module: nn.Module, _args: Any, _out: Any) -> None:
        nonlocal passed
        passed += 1
        # A module may be called more than once.
        step.at(min(1.0, passed / len(linear)))

    handles = [module.register_forward_hook(hook) for module in linear]
    try:
        yield
        step.at(1.0)
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def collect_moments(
    layer: nn.Module,
    groups: Sequence[Group],
    batches: Sequence[torch.Tensor],
    kwargs: Mapping[str, Any],
    *,
    stop_early: bool = False,
    step: Step = SILENT,
) -> list[Moments]:
    """Second moments of the groups' inputs over all batches.

    Args:
        stop_early: leave each forward pass as soon as the last group's input was seen.
        step: is told of every module that a batch has passed.
    """
    moments = []
    handles = []
    for index, group in enumerate(groups):
        module = layer.get_submodule(group.names[0])
        weight = weight_of(layer, group.names[0])
        k = weight.shape[1]
        found = Moments(torch.zeros(k, k, dtype=torch.float32, device=weight.device))
        moments.append(found)

        def hook(_module: nn.Module, args: tuple[Any, ...], *, found: Moments = found, last: bool = False) -> None:
            x = args[0].reshape(-1, args[0].shape[-1])
            found.hessian.addmm_(x.T, x)
            found.tokens += x.shape[0]
            if last:
                raise _Enough

        last = stop_early and index == len(groups) - 1
        handles.append(module.register_forward_pre_hook(lambda m, a, f=found, e=last, h=hook: h(m, a, found=f, last=e)))
    passes = step.split([1.0] * len(batches))
    try:
        for hidden, part in zip(batches, passes, strict=True):
            with _watched(layer, part):
                try:
                    run_layer(layer, hidden, kwargs)
                except _Enough:
                    continue
    finally:
        for handle in handles:
            handle.remove()
    return moments


def relative_error(original: torch.Tensor, quantized: torch.Tensor, hessian: torch.Tensor) -> float:
    """Share of a module's output energy that the error is: tr(D H D^T) / tr(W H W^T), D = quantized - original."""
    total = float((original @ hessian).mul_(original).sum())
    delta = quantized - original
    return float((delta @ hessian).mul_(delta).sum()) / total if total > 0 else 0.0


SAMPLE_TOKENS = 256


@dataclass
class InputRange:
    """The input of a group of linear modules.

    Attributes:
        peak: float32 (K,), largest magnitude of each channel over all tokens.
        sample: float32 (T, K), evenly spaced tokens of every batch, about ``SAMPLE_TOKENS``.
        tokens: number of tokens seen.
    """

    peak: torch.Tensor
    sample: torch.Tensor
    tokens: int = 0

    def divide(self, scale: torch.Tensor) -> None:
        """Follow a fold: the input is divided by ``scale`` (K,)."""
        self.peak /= scale
        self.sample /= scale


def spaced_rows(x: torch.Tensor, count: int) -> torch.Tensor:
    """``count`` rows of (T, K) at equal distances, all of them when there are no more; a copy."""
    if x.shape[0] <= count:
        return x.clone()
    return x[torch.arange(count, device=x.device) * x.shape[0] // count]


@torch.no_grad()
def collect_ranges(
    layer: nn.Module, groups: Sequence[Group], batches: Sequence[torch.Tensor], kwargs: Mapping[str, Any],
    step: Step = SILENT,
) -> list[InputRange]:  # fmt: skip
    """Ranges of the groups' inputs over all batches."""
    found, handles = [], []
    per_batch = -(-SAMPLE_TOKENS // len(batches))
    for group in groups:
        weight = weight_of(layer, group.names[0])
        k = weight.shape[1]
        seen = InputRange(torch.zeros(k, device=weight.device), torch.zeros(0, k, device=weight.device))
        found.append(seen)

        def hook(_module: nn.Module, args: tuple[Any, ...], *, seen: InputRange = seen) -> None:
            x = args[0].reshape(-1, args[0].shape[-1])
            if not x.shape[0]:
                return
            seen.peak = torch.maximum(seen.peak, x.abs().amax(0))
            seen.sample = torch.cat([seen.sample, spaced_rows(x, per_batch)])
            seen.tokens += x.shape[0]

        handles.append(layer.get_submodule(group.names[0]).register_forward_pre_hook(hook))
    passes = step.split([1.0] * len(batches))
    try:
        for hidden, part in zip(batches, passes, strict=True):
            with _watched(layer, part):
                run_layer(layer, hidden, kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return found


class AttentionRanges(TorchFunctionMode):
    """While active, keeps the largest magnitude of the keys (after rotation) and values that attention reads.

    Attributes:
        key, value: largest magnitudes so far, 0 when attention has not run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.key = self.value = 0.0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
            self.key = max(self.key, float(named["key"].abs().max()))
            self.value = max(self.value, float(named["value"].abs().max()))
        return func(*args, **kwargs)
