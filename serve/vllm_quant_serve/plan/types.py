"""The answer to a planning question. Plain dataclasses: no torch, no pydantic, fast to import.

All memory figures are bytes; all token figures are tokens of one data-parallel replica
unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Interval:
    """An estimate with its lower and upper bound."""

    low: int
    value: int
    high: int


@dataclass(frozen=True)
class Candidate:
    """One placement that was evaluated.

    Attributes:
        feasible: whether it meets the request.
        reason: why it does not meet the request; for a feasible one its KV tokens.
        kv_tokens: tokens the KV cache holds; None where the placement is illegal.
        ttft, tpot, tokens_per_second: roofline estimates, for placements that fit.
        device: the kind of device, where there are several.
        change: flags besides the sizes that make it fit.
    """

    tensor_parallel_size: int
    pipeline_parallel_size: int
    data_parallel_size: int
    feasible: bool
    reason: str
    weight_bytes_per_rank: int | None = None
    kv_tokens: int | None = None
    expert_parallel: bool = False
    ttft: float | None = None
    tpot: float | None = None
    tokens_per_second: float | None = None
    device: str = ""
    change: str = ""


@dataclass(frozen=True)
class Prediction:
    """Roofline estimates of a plan: seconds and output tokens per second, not measurements.

    Attributes:
        ttft: seconds to the first token, without queueing.
        tpot: seconds per output token at the requested concurrency.
        tokens_per_second: of all replicas at ``batch`` requests per replica, which the cache holds.
        cost_per_million: currency per million output tokens; None without a price.
    """

    prompt_tokens: int
    output_tokens: int
    ttft: float
    tpot: float
    tokens_per_second: float
    tokens_per_second_per_device: float
    batch: int
    cost_per_million: float | None = None


@dataclass(frozen=True)
class Plan:
    """The answer: a placement of the model that fits.

    Attributes:
        device: name of the device, e.g. ``H100 SXM 80GB`` or ``CPU``.
        memory_total: physical bytes of one device.
        memory_budget: bytes vLLM may use of it (total x utilization).
        weight_bytes_per_rank: largest rank.
        overhead_bytes: activations, graphs, communication buffers, context.
        kv_bytes: bytes of KV cache per rank.
        kv_bytes_per_token: bytes per token and rank of the full-attention part
            (the amount by which one more token grows the longest sequence).
        kv_tokens: tokens of KV cache, with its interval.
        kv_cache_memory: bytes to pin by ``--kv-cache-memory-bytes``; None leaves it to vLLM.
        expert_parallel: whole experts are distributed over the ranks.
        prediction: estimated speed.
        overhead_parts: the overhead by component.
        dtype: of what is not quantized, and of the activations.
        flags: ``vllm serve`` flags under which it runs this plan, flag -> value ("" for a switch): what the user asked
            for and what the planner chose, without what vLLM's defaults give.
        env: environment variables that the launch needs besides the flags.
        nnodes: hosts that the placement spans; the ranks fill one after another.
        devices_per_node: devices that the launch uses on a host, on the fullest where there are several.
        stage_layers: layers of each pipeline stage, where the stages differ from vLLM's even split.
        compute_dtype: operands of the GEMMs (``bf16``, ``fp8``, ``int8``): 8 bits only where activations are quantized.
        exact: vLLM's own figures, when asked for: ``weight_bytes`` (parameters of the largest rank),
            ``kv_blocks``, ``kv_tokens`` and whether they agree.
        notes: human-readable remarks, e.g. how a figure was computed.
    """

    model: str
    architecture: str
    quantization: str
    device: str
    device_count: int
    memory_total: int
    memory_budget: int
    tensor_parallel_size: int
    pipeline_parallel_size: int
    data_parallel_size: int
    max_model_len: int
    max_num_seqs: int
    gpu_memory_utilization: float
    kv_cache_dtype: str
    block_size: int
    weight_bytes_per_rank: int
    overhead_bytes: Interval
    kv_bytes: Interval
    kv_bytes_per_token: int
    kv_tokens: Interval
    kv_blocks: int
    max_concurrency: float
    kv_cache_memory: int | None = None
    expert_parallel: bool = False
    prediction: Prediction | None = None
    overhead_parts: dict[str, int] = field(default_factory=dict)
    flags: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    nnodes: int = 1
    devices_per_node: int = 1
    stage_layers: tuple[int, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    compute_dtype: str = "bf16"
    dtype: str = "bfloat16"
    exact: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()

    def serve_args(self) -> list[str]:
        """The flags of ``vllm serve`` that make this plan. The launcher leaves out those that its user typed."""
        return [word for flag, value in self.flags.items() for word in ([flag, value] if value else [flag])]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; ``serve_args`` is included."""
        return {**asdict(self), "serve_args": self.serve_args()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """The plan that ``to_dict`` made the JSON of; other keys (``serve_args``, ``explanation``) are left out."""
        known = {field.name: data[field.name] for field in fields(cls) if field.name in data}
        for name in ("overhead_bytes", "kv_bytes", "kv_tokens"):
            known[name] = Interval(**known[name])
        if known.get("prediction") is not None:
            known["prediction"] = Prediction(**known["prediction"])
        known["candidates"] = tuple(Candidate(**one) for one in known.get("candidates", ()))
        for name in ("notes", "stage_layers"):
            known[name] = tuple(known.get(name, ()))
        return cls(**known)
