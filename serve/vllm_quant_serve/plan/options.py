"""The options of a plan in groups: one declaration for ``plan``, ``serve`` and the Python API.

``None`` means that the user did not set the option and the planner chooses. Sizes are bytes, times are seconds.
No torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import typer

from vllm_quant_plugin.sizes import parse_size

Objective = Literal["fewest-gpus", "throughput", "latency", "cost"]


def _size_of(flag: str) -> Callable[[str], int]:
    """A parser of sizes such as ``48GiB`` that names the flag in its error."""

    def parse(text: str) -> int:
        return parse_size(text, flag)

    return parse


@dataclass(frozen=True)
class DeviceOptions:
    """The devices to plan for; without any, the GPUs of this host.

    Attributes:
        gpu: specifications such as ``h100:4`` (name and count), one per kind; ``h100:4,a100:2`` names two kinds.
        nodes: hosts that each have the given GPUs, which are of one kind.
        cpu: the CPU backend.
    """

    help_panel: ClassVar[str] = "Devices"

    gpu: Annotated[
        list[str], typer.Option("--gpu", help="GPU and count, e.g. h100:4 or h100:4,a100:2. Default: this host's GPUs.")
    ] = field(default_factory=list)
    nodes: Annotated[
        int | None, typer.Option("--nodes", help="Hosts that each have these GPUs, e.g. --gpu h200:8 --nodes 2.")
    ] = None
    cpu: Annotated[bool, typer.Option("--cpu", help="Plan for vLLM's CPU backend on this host.")] = False


@dataclass(frozen=True)
class MemoryOptions:
    """The memory of devices that are not in the table of GPUs.

    Attributes:
        gpu_memory: bytes of one GPU; with ``gpu`` it replaces the table's figure.
        gpu_count: number of GPUs of ``gpu_memory`` bytes.
        cpu_memory: bytes of host memory; None reads this host's.
    """

    help_panel: ClassVar[str] = "Devices"

    gpu_memory: Annotated[
        int | None,
        typer.Option("--gpu-memory", parser=_size_of("--gpu-memory"), metavar="SIZE",
                     help="Memory of one GPU, e.g. 48GiB, for GPUs not in the table."),
    ] = None  # fmt: skip
    gpu_count: Annotated[int, typer.Option("--gpu-count", help="Number of GPUs with --gpu-memory.")] = 1
    cpu_memory: Annotated[
        int | None,
        typer.Option("--cpu-memory", parser=_size_of("--cpu-memory"), metavar="SIZE",
                     help="Host memory to plan with, e.g. 64GiB; implies --cpu."),
    ] = None  # fmt: skip


@dataclass(frozen=True)
class EngineOptions:
    """Settings of the engine, as flags of ``vllm serve``. What is set here is a constraint.

    Attributes:
        quantization: on a 16-bit checkpoint, ``vqp_int8`` and ``vqp_fp8`` quantize while loading.
        kv_cache_memory: KV-cache bytes per rank (``--kv-cache-memory-bytes``).
        quantization_config: options of ``quantization``, as ``--hf-overrides`` gives them to vLLM.
    """

    help_panel: ClassVar[str] = "Flags of vllm serve"

    quantization: Annotated[
        str | None,
        typer.Option("--quantization", "-q", help="vqp_int8 and vqp_fp8 quantize a 16-bit checkpoint while loading."),
    ] = None
    dtype: Annotated[str, typer.Option("--dtype", help="auto, bfloat16, float16, float32.")] = "auto"
    max_model_len: Annotated[
        int | None, typer.Option("--max-model-len", help="Tokens of the longest request. Default: the model's context.")
    ] = None
    max_num_seqs: Annotated[int | None, typer.Option("--max-num-seqs", help="As in vllm serve.")] = None
    max_num_batched_tokens: Annotated[
        int | None, typer.Option("--max-num-batched-tokens", help="As in vllm serve.")
    ] = None
    kv_cache_dtype: Annotated[
        str | None, typer.Option("--kv-cache-dtype", help="auto, fp8, bfloat16, ... as in vllm serve.")
    ] = None
    kv_cache_memory: Annotated[
        int | None,
        typer.Option("--kv-cache-memory-bytes", parser=_size_of("--kv-cache-memory-bytes"), metavar="SIZE",
                     help="Fix the KV cache of a rank, e.g. 8GiB."),
    ] = None  # fmt: skip
    block_size: Annotated[int | None, typer.Option("--block-size", help="As in vllm serve.")] = None
    gpu_memory_utilization: Annotated[
        float | None, typer.Option("--gpu-memory-utilization", help="As in vllm serve; vLLM's default is 0.92.")
    ] = None
    tensor_parallel_size: Annotated[
        int | None, typer.Option("--tensor-parallel-size", "-tp", help="Fix the tensor-parallel size.")
    ] = None
    pipeline_parallel_size: Annotated[
        int | None, typer.Option("--pipeline-parallel-size", "-pp", help="Fix the pipeline-parallel size.")
    ] = None
    data_parallel_size: Annotated[
        int | None, typer.Option("--data-parallel-size", "-dp", help="Fix the number of replicas.")
    ] = None
    enable_expert_parallel: Annotated[
        bool | None, typer.Option("--enable-expert-parallel/--no-enable-expert-parallel", help="As in vllm serve.")
    ] = None
    enforce_eager: Annotated[bool, typer.Option("--enforce-eager", help="Plan without CUDA graphs.")] = False
    quantization_config: dict[str, object] | None = None


@dataclass(frozen=True)
class GoalOptions:
    """The load that the placement must carry, and what it is chosen by.

    Attributes:
        concurrency: requests of ``max_model_len`` tokens that must fit at once.
        objective: what to optimize among the placements that fit.
        prompt_tokens: prompt of a typical request, for the estimates of speed.
        output_tokens: output of a typical request, likewise.
        slo_ttft: seconds to the first token that must not be exceeded.
        slo_tpot: seconds per output token that must not be exceeded at ``concurrency``.
        price: currency per device-hour, for the cost of a million tokens.
    """

    help_panel: ClassVar[str] = "Load and objective"

    concurrency: Annotated[
        int, typer.Option("--concurrency", help="Requests of the full length that must fit at once.")
    ] = 1
    objective: Annotated[
        Objective, typer.Option("--objective", help="What the planner optimizes among the placements that fit.")
    ] = "fewest-gpus"
    prompt_tokens: Annotated[int | None, typer.Option("--prompt-tokens", help="Prompt of a typical request.")] = None
    output_tokens: Annotated[int | None, typer.Option("--output-tokens", help="Output of a typical request.")] = None
    slo_ttft: Annotated[
        float | None, typer.Option("--slo-ttft", help="Upper limit of the seconds to the first token (estimated).")
    ] = None
    slo_tpot: Annotated[
        float | None, typer.Option("--slo-tpot", help="Upper limit of the seconds per output token (estimated).")
    ] = None
    price: Annotated[
        float | None, typer.Option("--price", help="Price of one device-hour, for the cost of a million tokens.")
    ] = None


@dataclass(frozen=True)
class OutputOptions:
    """What ``vllm-quant plan`` prints or writes."""

    help_panel: ClassVar[str] = "Output"

    compare: Annotated[
        bool, typer.Option("--compare", help="BF16, FP8, INT8, AWQ-4 and GPTQ-3 of a 16-bit model side by side.")
    ] = False
    explain: Annotated[bool, typer.Option("--explain", help="Also explain how each figure was computed.")] = False
    html: Annotated[str | None, typer.Option("--html", help="Also write a report to this file.")] = None
    accuracy: Annotated[
        bool, typer.Option("--accuracy", help="Errors of the plans of all recorded launches; needs no model.")
    ] = False
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False
    emit: Annotated[
        str | None, typer.Option("--emit", help="Print deployment files: systemd, compose, k8s, ray or kuberay.")
    ] = None
    image: Annotated[str | None, typer.Option("--image", help="Container image, for --emit.")] = None
