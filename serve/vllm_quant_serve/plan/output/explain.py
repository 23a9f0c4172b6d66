"""``plan --explain``: how each figure of a plan was computed, in sentences. No torch."""

from __future__ import annotations

import math
from collections import Counter

from vllm_quant_kernels.kernel import Device
from vllm_quant_plugin.architecture.placement import Placement
from vllm_quant_plugin.kernel_use import kernel_uses
from vllm_quant_serve.plan.memory.overhead import SOURCES, version_key
from vllm_quant_serve.plan.output.render import between, size
from vllm_quant_serve.plan.search.context import Context
from vllm_quant_serve.plan.types import Plan


def explain(context: Context, plan: Plan) -> list[str]:
    """Human-readable lines, from the device down to the KV token."""
    place = Placement(plan.tensor_parallel_size, plan.pipeline_parallel_size, plan.data_parallel_size,
                      plan.expert_parallel, plan.stage_layers)  # fmt: skip
    return [
        *_device(context, plan),
        *_weights(context, place),
        *_kernels(context),
        *_overhead(context, plan),
        *_cache(context, plan, place),
    ]


def _device(context: Context, plan: Plan) -> list[str]:
    note = f" ({context.devices.note})" if context.devices.note else ""
    share = f"{plan.gpu_memory_utilization:g} of {size(plan.memory_total)}"
    return [f"{plan.device}{note}: vLLM may use {share} = {size(plan.memory_budget)} per device."]


def _weights(context: Context, place: Placement) -> list[str]:
    by_kind: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    for parameter in context.arch.parameters():
        kind = _kind(parameter.name, parameter.role)
        by_kind[kind] += context.weights.bytes_of(parameter, place)
        whole[kind] += parameter.count * math.prod(parameter.shape)
    cut = f"TP {place.tp}" + (f", of all {place.pp} stages together" if place.pp > 1 else "")
    lines = [f"Weights ({context.quantization}), bytes per rank at {cut}:"]
    for kind, nbytes in by_kind.most_common():
        lines.append(f"  {kind}: {size(nbytes)} for {whole[kind] / 1e9:.3f} billion elements")
    if context.arch.rotary_elements:
        lines.append(f"  cos/sin tables: {size(context.arch.rotary_elements * context.itemsize)}, on every rank")
    return lines


def _kernels(context: Context) -> list[str]:
    """What runs the quantized layers, and why it is not this project's kernel."""
    weights = context.weights
    if weights.scheme is None:
        return []
    if not weights.plugin:
        return ["Kernels: vLLM's own methods serve the quantized layers."]
    capability = context.devices.gpu.capability
    device = Device(weights.plugin, capability if weights.plugin == "cuda" and capability[0] else None)
    layers = [
        (scheme, parameter.shape[0], parameter.shape[1])
        for parameter in context.arch.parameters()
        if parameter.linear and len(parameter.shape) == 2 and (scheme := weights.scheme_of(parameter.module))
    ]
    return ["Kernels, when it is served on this machine:",
            *(f"  {use.sentence()}" for use in kernel_uses(layers, device))]  # fmt: skip


def _kind(name: str, role: str) -> str:
    if role.startswith("expert"):
        return "experts"
    if role == "vocab":
        return "embedding and lm_head (vocabulary padded to 64)"
    for word, kind in (("attn", "attention"), ("attention", "attention"), ("mamba", "state space"), ("mixer", "mixers"),
                       ("conv", "convolutions"), ("norm", "norms"), ("mlp", "feed-forward"),
                       ("feed_forward", "feed-forward")):  # fmt: skip
        if word in name:
            return kind
    return "others"


def _overhead(context: Context, plan: Plan) -> list[str]:
    if context.devices.is_cpu:
        where = "a CPU"
    else:
        major, minor = context.devices.gpu.capability
        where = f"compute capability {major}.{minor}" if major else "AMD"
    head = f"Overheads, estimated for vLLM {version_key(context.version)} on {where}: {between(plan.overhead_bytes)}:"
    return [head, *(f"  {name} {size(nbytes)}: {SOURCES[name]}" for name, nbytes in plan.overhead_parts.items())]


def _cache(context: Context, plan: Plan, place: Placement) -> list[str]:
    # The stage whose blocks are the largest, as the plan's figures are of the rank that limits the cache.
    layout = max(context.layouts(place), key=lambda one: one.block_bytes)
    if not layout.groups:
        return ["The model keeps no cache."]
    lines = [f"KV cache: {size(plan.kv_bytes.value)} hold {plan.kv_blocks:,} blocks of {size(layout.block_bytes)}."]
    for (spec, layers), groups in Counter((g.spec, len(g.layers)) for g in layout.groups).items():
        pages = spec.pages(plan.max_model_len, context.kv)
        window = f" of {spec.window} tokens" if spec.window else ""
        lines.append(
            f"  {groups} group{'s' * (groups > 1)} of {layers} {spec.kind}{window} layers: {spec.block_size} tokens"
            f" a block, {pages} blocks for a request of {plan.max_model_len:,} tokens"
        )
    per_request = layout.blocks_per_request(plan.max_model_len)
    lines.append(
        f"  {plan.kv_blocks:,} / {per_request:,} blocks = {plan.max_concurrency:g} requests of {plan.max_model_len:,}"
        f" tokens at once = {plan.kv_tokens.value:,} tokens, as vLLM counts them"
    )
    return lines
