"""``vllm-quant plan``: what fits, at which TP, with how many KV tokens."""

from __future__ import annotations

from typing import Annotated

import typer

from vllm_quant_plugin.errors import UsageError
from vllm_quant_serve.plan.devices.gpus import parse_size


def plan(
    model: Annotated[str | None, typer.Argument(help="Model folder or hub id.")] = None,
    gpu: Annotated[
        list[str] | None,
        typer.Option("--gpu", help="GPU and count, e.g. h100:4 or h100:4,a100:2. Without it: this host's."),
    ] = None,
    gpu_memory: Annotated[
        str | None, typer.Option("--gpu-memory", help="Memory of one GPU, e.g. 48GiB, for GPUs not in the table.")
    ] = None,
    gpu_count: Annotated[int, typer.Option("--gpu-count", help="Number of GPUs with --gpu-memory.")] = 1,
    nodes: Annotated[
        int | None, typer.Option("--nodes", help="Hosts that each have these GPUs, e.g. --gpu h200:8 --nodes 2.")
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Plan for vLLM's CPU backend on this host.")] = False,
    cpu_memory: Annotated[
        str | None, typer.Option("--cpu-memory", help="Host memory to plan with, e.g. 64GiB; implies --cpu.")
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option("--max-model-len", help="Tokens of the longest request. Default: the model's context.")
    ] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", help="Requests of that length which must fit at once.")
    ] = 1,
    max_num_seqs: Annotated[int | None, typer.Option("--max-num-seqs", help="As in vllm serve.")] = None,
    max_num_batched_tokens: Annotated[
        int | None, typer.Option("--max-num-batched-tokens", help="As in vllm serve.")
    ] = None,
    kv_cache_dtype: Annotated[
        str | None, typer.Option("--kv-cache-dtype", help="auto, fp8, bfloat16, ... as in vllm serve.")
    ] = None,
    kv_cache_memory: Annotated[
        str | None, typer.Option("--kv-cache-memory-bytes", help="Fix the KV cache of a rank, e.g. 8GiB.")
    ] = None,
    block_size: Annotated[int | None, typer.Option("--block-size", help="As in vllm serve.")] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="auto, bfloat16, float16, float32.")] = "auto",
    quantization: Annotated[
        str | None,
        typer.Option("--quantization", "-q", help="vqp_int8 and vqp_fp8 quantize a 16-bit checkpoint while loading."),
    ] = None,
    gpu_memory_utilization: Annotated[
        float | None, typer.Option("--gpu-memory-utilization", help="As in vllm serve; vLLM's default is 0.92.")
    ] = None,
    tensor_parallel_size: Annotated[
        int | None, typer.Option("--tensor-parallel-size", "-tp", help="Fix the tensor-parallel size.")
    ] = None,
    pipeline_parallel_size: Annotated[
        int | None, typer.Option("--pipeline-parallel-size", "-pp", help="Fix the pipeline-parallel size.")
    ] = None,
    data_parallel_size: Annotated[int | None, typer.Option("--data-parallel-size", "-dp", help="Replicas.")] = None,
    enable_expert_parallel: Annotated[
        bool | None, typer.Option("--enable-expert-parallel/--no-enable-expert-parallel", help="As in vllm serve.")
    ] = None,
    enforce_eager: Annotated[bool, typer.Option("--enforce-eager", help="Plan without CUDA graphs.")] = False,
    objective: Annotated[
        str, typer.Option("--objective", help="fewest-gpus, throughput, latency or cost.")
    ] = "fewest-gpus",
    prompt_tokens: Annotated[int | None, typer.Option("--prompt-tokens", help="Prompt of a typical request.")] = None,
    output_tokens: Annotated[int | None, typer.Option("--output-tokens", help="Output of a typical request.")] = None,
    slo_ttft: Annotated[
        float | None, typer.Option("--slo-ttft", help="Seconds to the first token not to exceed (estimated).")
    ] = None,
    slo_tpot: Annotated[
        float | None, typer.Option("--slo-tpot", help="Seconds per output token not to exceed (estimated).")
    ] = None,
    price: Annotated[
        float | None, typer.Option("--price", help="Price of one device-hour, for the cost of a million tokens.")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Also ask the installed vLLM about the chosen placement (10 to 20 s).")
    ] = False,
    revision: Annotated[str | None, typer.Option("--revision", help="Hub branch, tag or commit.")] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="BF16, FP8, INT8, AWQ-4 and GPTQ-3 of a 16-bit model side by side.")
    ] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Also say how each figure came about.")] = False,
    html: Annotated[str | None, typer.Option("--html", help="Also write a report to this file.")] = None,
    accuracy: Annotated[
        bool, typer.Option("--accuracy", help="Errors of the plans of all recorded launches; needs no model.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    emit: Annotated[
        str | None, typer.Option("--emit", help="Print deployment files: systemd, compose, k8s, ray or kuberay.")
    ] = None,
    image: Annotated[str | None, typer.Option("--image", help="Container image, for --emit.")] = None,
) -> None:
    """What fits, at which tensor-parallel size, with how many KV tokens, and why.

    Reads config.json and safetensors headers only. Exit code 3 when nothing fits.
    """
    from vllm_quant_serve.plan.output import show
    from vllm_quant_serve.plan.types import PlanRequest

    if accuracy:
        show.show_accuracy(as_json)
        return
    if model is None:
        raise UsageError("plan needs a model", "give a model folder or a hub id")
    request = PlanRequest(
        model=model,
        revision=revision,
        gpu=tuple(gpu or ()),
        gpu_memory=parse_size(gpu_memory, "--gpu-memory") if gpu_memory else None,
        gpu_count=gpu_count,
        nodes=nodes,
        cpu=cpu,
        cpu_memory=parse_size(cpu_memory, "--cpu-memory") if cpu_memory else None,
        quantization=quantization,
        dtype=dtype,
        max_model_len=max_model_len,
        concurrency=concurrency,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        kv_cache_dtype=kv_cache_dtype,
        kv_cache_memory=parse_size(kv_cache_memory, "--kv-cache-memory-bytes") if kv_cache_memory else None,
        block_size=block_size,
        gpu_memory_utilization=gpu_memory_utilization,
        tensor_parallel_size=tensor_parallel_size,
        pipeline_parallel_size=pipeline_parallel_size,
        data_parallel_size=data_parallel_size,
        enable_expert_parallel=enable_expert_parallel,
        enforce_eager=enforce_eager,
        objective=objective,  # type: ignore[arg-type]  # checked with the request
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        slo_ttft=slo_ttft,
        slo_tpot=slo_tpot,
        price=price,
        exact=exact,
    )
    if compare:
        show.show_comparison(request, as_json)
        return
    if emit is not None:
        from vllm_quant_serve.deploy.from_plan import show_files

        show_files(request, emit, image)
        return
    show.show_plan(request, as_json=as_json, explained=explain, html=html)
