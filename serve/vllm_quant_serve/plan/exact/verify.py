"""A plan checked by vLLM itself (``--exact``). No torch in this process."""

from __future__ import annotations

from dataclasses import replace

from vllm_quant_plugin.architecture.placement import Placement
from vllm_quant_plugin.errors import BackendError
from vllm_quant_plugin.hub import resolve_model
from vllm_quant_serve.plan.devices.cpu import cpu_flags
from vllm_quant_serve.plan.exact.ask import ExactJob, ask_vllm
from vllm_quant_serve.plan.memory.kv import kv_layouts
from vllm_quant_serve.plan.search.context import Context
from vllm_quant_serve.plan.types import Interval, Plan

WEIGHT_TOLERANCE = 0.005


def verified(context: Context, plan: Plan) -> Plan:
    """``plan`` with vLLM's figures in ``exact``; where they differ, they replace the planner's.

    vLLM answers for the platform that is installed here: its block size may differ from the planned
    device's, so the comparison is made at vLLM's block size.

    Raises:
        BackendError: vLLM is missing here, or refuses the model on this platform.
    """
    if plan.expert_parallel:
        raise BackendError("vLLM cannot be asked about expert parallelism without devices", "plan without --exact")
    # One replica: vLLM is asked without data parallelism, over which it would cut the experts further.
    place = Placement(plan.tensor_parallel_size, plan.pipeline_parallel_size, 1,
                      layers=plan.stage_layers)  # fmt: skip
    request = context.request
    job = ExactJob(
        str(resolve_model(request.model, revision=request.revision, weights=False)), plan.kv_bytes.value, place.tp,
        place.pp, max_model_len=plan.max_model_len, block_size=plan.block_size,
        kv_cache_dtype=None if plan.kv_cache_dtype == "auto" else plan.kv_cache_dtype,
        quantization=request.quantization, max_num_batched_tokens=max(context.max_num_batched_tokens, 2048),
        partition=plan.stage_layers or None,
    )  # fmt: skip
    (answer,) = ask_vllm([job])
    if answer.error:
        raise BackendError(f"vLLM on this machine refuses to build the model: {answer.error}", "plan without --exact")
    mine = context.weights.weights(place).parameters
    hybrid = any(cache.kind == "mamba" for cache in context.arch.caches)
    state = context.kv.state_itemsize
    if answer.device == "cpu":
        state = 4 if "avx512_bf16" in cpu_flags() else context.itemsize
    settings = replace(context.kv, block_size=context.kv.block_size if hybrid else answer.block_size,
                       in_flight=answer.in_flight, encoder_tokens=answer.in_flight, state_itemsize=state,
                       dtype=plan.kv_cache_dtype)  # fmt: skip
    stages = kv_layouts(context.arch.layers, place.tp, place.stages(len(context.arch.layers)), settings)
    layout = max(stages, key=lambda one: one.block_bytes)
    blocks = layout.blocks(plan.kv_bytes.value)
    off = max(abs(a - b) / b for a, b in zip(mine, answer.weights, strict=True))
    agrees = off <= WEIGHT_TOLERANCE and blocks == answer.blocks
    exact = {
        "weight_bytes": max(answer.weights), "kv_blocks": answer.blocks, "kv_tokens": answer.tokens,
        "block_size": answer.block_size, "agrees": agrees,
    }  # fmt: skip
    if agrees:
        return replace(plan, exact=exact, notes=(*plan.notes, "vLLM itself agrees: weights and KV blocks are the same"))
    note = (f"vLLM differs: weights {max(answer.weights)} against {max(mine)} bytes, KV blocks {answer.blocks} against "
            f"{blocks}; its figures are shown")  # fmt: skip
    tokens = Interval(answer.tokens, answer.tokens, answer.tokens)
    shifted = plan.weight_bytes_per_rank + max(answer.weights) - max(mine)
    return replace(plan, exact=exact, weight_bytes_per_rank=shifted, kv_tokens=tokens, kv_blocks=answer.blocks,
                   notes=(*plan.notes, note))  # fmt: skip
