"""Runs in a subprocess: asks vLLM itself, on the meta device, what a rank holds.

``python -m vllm_quant_serve.plan.exact.worker`` reads one job per line (JSON) from stdin and
answers each with one JSON line on the stream that was stdout at the start; everything that
vLLM prints goes to stderr. Private vLLM interfaces are used (0.32 and 0.33): the model is
built without memory, one process pretends to be rank 0 of a tensor-parallel group, and
vLLM's own functions turn the layers' cache specs into blocks.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from typing import Any, TextIO

from vllm_quant_kernels import env
from vllm_quant_serve.plan.exact.torchvision import stand_in_for_torchvision


def _groups(tp: int, pp: int, stage: int) -> None:
    """Make the one-process groups look like rank 0 of ``tp`` ranks in stage ``stage`` of ``pp``."""
    from vllm.distributed import parallel_state

    group = parallel_state.get_tp_group()
    group.world_size = tp
    pipeline = parallel_state.get_pp_group()
    pipeline.world_size = pp
    pipeline.rank_in_group = stage
    pipeline.ranks = list(range(pp))
    pipeline.rank = stage


def _build_scalars_on_cpu() -> None:
    """Gemma 3n computes a threshold while it is built, whose value a meta tensor does not have."""
    import torch
    from vllm.model_executor.layers.activation import GeluAndMulSparse

    original = GeluAndMulSparse.__init__

    def build(self: Any, *arguments: Any, **options: Any) -> None:
        with torch.device("cpu"):
            original(self, *arguments, **options)

    GeluAndMulSparse.__init__ = build


def _start(folder: str) -> None:
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.model_executor.models import registry

    # vLLM inspects each model class in a process of its own, to keep CUDA out of this one; this one is that process.
    _build_scalars_on_cpu()
    stand_in_for_torchvision()
    registry._run_in_subprocess = lambda function: function()
    with set_current_vllm_config(VllmConfig()):
        init_distributed_environment(1, 0, f"file://{folder}/rendezvous", 0, "gloo")
        initialize_model_parallel(1, 1, backend="gloo")


def _engine_config(job: dict[str, Any]) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    keys = ("max_model_len", "block_size", "kv_cache_dtype", "quantization", "dtype", "max_num_seqs",
            "max_num_batched_tokens", "hf_overrides", "enable_prefix_caching", "language_model_only")  # fmt: skip
    extra = {key: job[key] for key in keys if job.get(key) is not None}
    arguments = EngineArgs(
        model=job["model"], load_format="dummy", skip_tokenizer_init=True, enforce_eager=True, trust_remote_code=False,
        **extra,
    )  # fmt: skip
    return arguments.create_engine_config()


def _stage(config: Any, tp: int, pp: int, stage: int) -> tuple[int, int, dict[str, Any], dict[str, int]]:
    """Parameter bytes, buffer bytes and cache specs of one stage, and bytes by parameter name."""
    import torch
    from vllm.config import get_layers_from_vllm_config, set_current_vllm_config
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.platforms import current_platform
    from vllm.utils.torch_utils import set_default_torch_dtype
    from vllm.v1.kv_cache_interface import AttentionSpec
    from vllm.v1.worker.utils import customize_attention_spec

    _groups(tp, pp, stage)
    config.compilation_config.static_forward_context.clear()
    with set_current_vllm_config(config), torch.device("meta"), set_default_torch_dtype(config.model_config.dtype):
        model = initialize_model(config)
        current_platform.update_block_size_for_backend(config)
    names = {name: p.numel() * p.element_size() for name, p in model.named_parameters()}
    seen, buffers = set(), 0
    for _, buffer in model.named_buffers():
        if id(buffer) not in seen:
            seen.add(id(buffer))
            buffers += buffer.numel() * buffer.element_size()
    specs: dict[str, Any] = {}
    for name, layer in get_layers_from_vllm_config(config, AttentionLayerBase).items():
        if getattr(layer, "kv_sharing_target_layer_name", None):
            continue
        spec = layer.get_kv_cache_spec(config)
        if spec:
            if isinstance(spec, AttentionSpec):
                spec = customize_attention_spec(layer.get_attn_backend(), spec)
            specs[name] = spec
    return sum(names.values()), buffers, specs, names


def _cache(config: Any, specs: list[dict[str, Any]], kv_bytes: int) -> dict[str, Any]:
    from vllm.v1.core.kv_cache_utils import get_kv_cache_capacity

    config.cache_config.kv_cache_layout = "LBHNC"  # layer-outer, as the default of CUDA (LBNHC) is
    if not any(specs):
        return {"blocks": 0, "tokens": 0, "concurrency": 0.0, "groups": []}
    memory = [kv_bytes] * len(specs)
    try:  # vLLM 0.33: grouping is a step of its own
        from vllm.v1.core.kv_cache_planning import get_global_kv_cache_groups, get_kv_cache_configs
    except ImportError:  # vLLM 0.32
        from vllm.v1.core.kv_cache_utils import get_kv_cache_configs

        found = get_kv_cache_configs(config, specs, memory)
    else:
        found = get_kv_cache_configs(config, specs, memory, get_global_kv_cache_groups(config, specs))
    tokens, concurrency = get_kv_cache_capacity(config, found[0])
    groups = []
    for group in found[0].kv_cache_groups:
        spec = group.kv_cache_spec
        groups.append([type(spec).__name__, len(group.layer_names), spec.block_size, spec.page_size_bytes])
    return {"blocks": found[0].num_blocks, "tokens": tokens, "concurrency": concurrency, "groups": groups}


def _register_unknown(folder: str) -> None:
    """Let transformers read a model_type that it knows only through remote code, which is never run here."""
    from pathlib import Path

    from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

    model_type = json.loads((Path(folder) / "config.json").read_text()).get("model_type")
    if model_type in ("internlm2", "internlm3", "deepseek", "kimi_k2") and model_type not in CONFIG_MAPPING:
        AutoConfig.register(model_type, type("PlainConfig", (PretrainedConfig,), {"model_type": model_type}))


def ask(job: dict[str, Any]) -> dict[str, Any]:
    """One job: ``model``, ``tp``, ``pp``, ``kv_bytes`` and engine arguments; see ``exact.ExactJob``."""
    _groups(1, 1, 0)
    os.environ.pop("VLLM_PP_LAYER_PARTITION", None)
    if job.get("partition"):
        os.environ["VLLM_PP_LAYER_PARTITION"] = ",".join(map(str, job["partition"]))
    _register_unknown(job["model"])
    if job.get("any_kernel"):
        from vllm_quant_serve.plan.exact.compat_kernels import accept_any_kernel

        accept_any_kernel()
    config = _engine_config(job)
    tp, pp = int(job.get("tp", 1)), int(job.get("pp", 1))
    config.parallel_config.tensor_parallel_size = tp
    config.parallel_config.pipeline_parallel_size = pp
    config.parallel_config.world_size = tp * pp
    config.model_config.verify_with_parallel_config(config.parallel_config)
    stages = [_stage(config, tp, pp, stage) for stage in range(pp)]
    answer: dict[str, Any] = {
        "weights": [stage[0] for stage in stages],
        "buffers": [stage[1] for stage in stages],
        "layers": sum(len(stage[2]) for stage in stages),
        "block_size": config.cache_config.block_size,
        "in_flight": config.max_in_flight_tokens,
        "max_model_len": config.model_config.max_model_len,
        "dtype": str(config.model_config.dtype),
        "architecture": config.model_config.architecture,
        "device": config.device_config.device_type,
    }
    if job.get("names"):
        answer["names"] = [stage[3] for stage in stages]
    return {**answer, **_cache(config, [stage[2] for stage in stages], int(job["kv_bytes"]))}


def reason(err: Exception) -> str:
    """The message of an exception; of pydantic's several lines, the one with the reason."""
    text = str(err).strip() or type(err).__name__
    for line in text.splitlines():
        found = line.strip().removeprefix("Value error, ").removeprefix("Assertion failed, ")
        if found != line.strip():
            return found.partition(" [type=")[0]
    return text


def serve(out: TextIO) -> None:
    """Answer the jobs on stdin, one JSON line each, to ``out``."""
    with tempfile.TemporaryDirectory() as folder:
        _start(folder)
        for line in sys.stdin:
            if not line.strip():
                continue
            try:
                answer = ask(json.loads(line))
            except Exception as err:  # a refusal by vLLM is an answer, whatever its class
                text = reason(err)
                answer = {"error": text[:2000], "kind": type(err).__name__}
                if env.switch("VQP_EXACT_TRACE"):
                    traceback.print_exc()
            print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM prints to stdout, too
    serve(answers)
