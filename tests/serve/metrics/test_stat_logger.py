"""``VqpStatLogger`` fed with vLLM's own statistics objects; every figure is worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY

import vllm_quant_plugin
from vllm_quant_plugin.formats import parse_quantization_config
from vllm_quant_plugin.kernel_use import KernelUse
from vllm_quant_serve.metrics import catalogue, facts, stat_logger
from vllm_quant_serve.metrics.facts import ModelFacts
from vllm_quant_serve.supervise.run_directory import VARIABLE, RunDirectory

BUNDLED = Path(vllm_quant_plugin.__file__).parent / "data" / "stdlib-llama"
# 8 layers of q, o: 256x256; k, v: 128x256; gate, up, down: 768x256; and the tied head 4096x256.
LINEAR = 8 * (2 * 256 * 256 + 2 * 128 * 256 + 3 * 768 * 256)
WEIGHTS = LINEAR + 4096 * 256
PLAN = {
    "weight_bytes_per_rank": 14_000_000,
    "kv_bytes_per_token": 4096,
    "kv_tokens": {"low": 900, "value": 1000, "high": 1100},
}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    import vllm_quant_serve.metrics.stat_logger as module

    now = SimpleNamespace(value=1000.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: now.value)
    return now


@pytest.fixture(autouse=True)
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without an NVIDIA driver."""
    import pynvml

    def absent() -> None:
        raise pynvml.NVMLError_LibraryNotFound

    monkeypatch.setattr(pynvml, "nvmlInit", absent)


@pytest.fixture(autouse=True)
def fresh_registry() -> Iterator[None]:
    """Metric objects live as long as a process; here as long as a test."""
    yield
    for metric in catalogue._built.pop(id(REGISTRY), {}).values():
        REGISTRY.unregister(metric)


def make_logger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **told: Any) -> Any:
    from vllm_quant_serve.metrics.stat_logger import VqpStatLogger

    if told:
        RunDirectory(tmp_path).write_metadata(told)
        monkeypatch.setenv(VARIABLE, str(tmp_path))
    config = SimpleNamespace(
        model_config=SimpleNamespace(
            model=str(BUNDLED), revision=None, quantization=None, served_model_name="m", max_model_len=300
        ),
        parallel_config=SimpleNamespace(tensor_parallel_size=2, pipeline_parallel_size=1, data_parallel_size=1),
        cache_config=SimpleNamespace(kv_cache_size_tokens=1000, num_gpu_blocks=10, block_size=100),
        quant_config=None,
    )
    logger = VqpStatLogger(config, [0])
    logger.log_engine_initialized()
    assert not logger._broken
    return logger


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, {"model_name": "m", **labels})


def step(
    logger: Any, generated: int, prompt: int = 0, kv_usage: float = 0.0, finished: list[Any] | None = None
) -> None:
    from vllm.v1.metrics.stats import IterationStats, SchedulerStats

    iteration = IterationStats()
    iteration.num_generation_tokens = generated
    iteration.prompt_token_stats.computed = prompt
    iteration.finished_requests = finished or []
    logger.record(SchedulerStats(num_running_reqs=1, kv_cache_usage=kv_usage), iteration, engine_idx=0)


def request(reason: str, e2e: float, decode: float, tokens: int, tpot: float) -> Any:
    from vllm.v1.engine import FinishReason
    from vllm.v1.metrics.stats import FinishedRequestStats

    return FinishedRequestStats(
        finish_reason=FinishReason[reason], e2e_latency=e2e, decode_time=decode, num_generation_tokens=tokens,
        mean_time_per_output_token=tpot,
    )  # fmt: skip


def test_facts_without_a_launcher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    make_logger(monkeypatch, tmp_path)
    assert value("vqp_weight_bits") == 16
    assert value("vqp_devices") == 2
    assert value("vqp_kv_cache_tokens", source="actual") == 1000
    assert value("vqp_headroom_requests", engine="0") == 3, "1000 tokens hold three requests of 300"
    for unknown in ("vqp_load_seconds", "vqp_price_per_hour", "vqp_goodput_tokens_total", "vqp_slo_ttft_seconds"):
        assert value(unknown) is None
    assert value("vqp_kv_cache_tokens", source="plan") is None
    assert value("vqp_energy_joules_total") is None, "this machine has no NVML"


def test_the_kernels_are_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
    model = parse_quantization_config(config)
    uses = [KernelUse("vLLM Marlin", "INT4 g128 sym", "not proven: no verdict on this GPU"), KernelUse("vqp W8A8", "x")]
    monkeypatch.setattr(facts, "uses_of_checkpoint", lambda checkpoint, given, device: uses if given is model else [])
    vllm_config = SimpleNamespace(
        model_config=SimpleNamespace(model=str(BUNDLED), revision=None, quantization="vqp_gptq"),
        quant_config=SimpleNamespace(model=model),
        device_config=SimpleNamespace(device_type="cuda"),
    )
    assert facts.read_facts(vllm_config).kernels == tuple(uses)
    vllm_config.quant_config = None
    assert facts.read_facts(vllm_config).kernels == (), "vLLM's own methods"
    monkeypatch.setattr(stat_logger, "read_facts", lambda _: ModelFacts("vqp_gptq", kernels=tuple(uses)))
    logger = object.__new__(stat_logger.VqpStatLogger)
    logger.model_name, logger.launch, logger.devices, logger.price = "m", {}, 1, None
    logger.vllm_config, logger.peaks, logger.objective = vllm_config, None, None
    logger._publish_facts()
    labels = {"kernel": "vLLM Marlin", "scheme": "INT4 g128 sym", "why": "not proven: no verdict on this GPU"}
    assert value("vqp_kernel_info", **labels) == 1
    assert value("vqp_kernel_info", kernel="vqp W8A8", scheme="x", why="") == 1


def test_plan_against_actual(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    logger = make_logger(monkeypatch, tmp_path, plan=PLAN, launched_at=0.0, restarts=2, retries=1)
    assert value("vqp_kv_cache_tokens", source="plan") == 1000
    assert value("vqp_kv_cache_tokens", source="plan_low") == 900
    assert value("vqp_weight_bytes", source="plan") == 14_000_000
    assert value("vqp_weight_bytes", source="actual") is None
    assert value("vqp_server_restarts") == 2
    assert value("vqp_server_start_retries") == 1
    (tmp_path / "actual.json").write_text(json.dumps({"weight_bytes": 15_000_000}))
    logger.log()
    assert value("vqp_weight_bytes", source="actual") == 15_000_000


def test_rates_and_utilization(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clock: SimpleNamespace) -> None:
    peaks = {"bandwidth": 1e9, "flops": 1e9}
    logger = make_logger(monkeypatch, tmp_path, plan=PLAN, peaks=peaks, price=1.8)
    for _ in range(200):
        clock.value += 0.1
        step(logger, generated=8, prompt=2, kv_usage=0.5)
    assert value("vqp_generation_tokens_per_second", engine="0") == pytest.approx(80, rel=0.06)
    assert value("vqp_prompt_tokens_per_second", engine="0") == pytest.approx(20, rel=0.06)
    assert value("vqp_generation_tokens_per_second_per_device", engine="0") == pytest.approx(40, rel=0.06)
    # Ten steps a second, each reading the rank's weights and half of 1000 tokens' cache.
    read = 10 * (14_000_000 + 0.5 * 1000 * 4096)
    assert value("vqp_model_bandwidth_utilization_ratio", engine="0") == pytest.approx(read / 1e9, rel=0.06)
    # A hundred tokens a second, two operations for each weight, on two ranks.
    assert value("vqp_model_flops_utilization_ratio", engine="0") == pytest.approx(100 * WEIGHTS / 1e9, rel=0.06)
    # Two devices at 1.8 an hour are 0.001 a second for 80 tokens.
    assert value("vqp_price_per_hour") == 3.6
    assert value("vqp_cost_per_million_tokens") == pytest.approx(12.5, rel=0.06)
    assert value("vqp_headroom_requests", engine="0") == 1
    clock.value += 60
    logger.log()
    assert value("vqp_generation_tokens_per_second", engine="0") == 0
    assert value("vqp_cost_per_million_tokens") is None, "idle, a token has no price"


def test_without_peaks_there_is_no_utilization(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clock: SimpleNamespace
) -> None:
    logger = make_logger(monkeypatch, tmp_path, plan=PLAN, peaks=None)
    clock.value += 1
    step(logger, generated=8)
    assert value("vqp_generation_tokens_per_second", engine="0") is not None
    assert value("vqp_model_bandwidth_utilization_ratio", engine="0") is None
    assert value("vqp_peak_flops_per_second") is None


def test_goodput(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    logger = make_logger(monkeypatch, tmp_path, slo={"ttft": 0.5, "tpot": 0.05})
    assert value("vqp_slo_requests_total", result="met") == 0, "known to be none yet"
    step(logger, 1, finished=[
        request("LENGTH", e2e=2.4, decode=2.0, tokens=41, tpot=0.05),
        request("STOP", e2e=2.6, decode=2.0, tokens=41, tpot=0.05),
        request("STOP", e2e=2.4, decode=2.0, tokens=11, tpot=0.2),
        request("ABORT", e2e=9.0, decode=1.0, tokens=3, tpot=0.5),
    ])  # fmt: skip
    assert value("vqp_slo_requests_total", result="met") == 1
    assert value("vqp_slo_requests_total", result="missed") == 2, "a client that leaves is no miss"
    assert value("vqp_goodput_tokens_total") == 41
    assert value("vqp_slo_ttft_seconds") == 0.5


def test_a_step_is_a_heartbeat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clock: SimpleNamespace) -> None:
    import os

    import vllm_quant_serve.supervise.run_directory as module

    monkeypatch.setattr(module.time, "monotonic", lambda: 77.0)
    logger = make_logger(monkeypatch, tmp_path, plan=PLAN)
    step(logger, generated=1)
    pages = RunDirectory(tmp_path).pages()
    assert [(page.pid, page.in_flight, page.last_step) for page in pages] == [(os.getpid(), 0, 77.0)]


def test_unexpected_statistics_stop_the_metrics_not_the_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    logger = make_logger(monkeypatch, tmp_path)
    logger.record(SimpleNamespace(), SimpleNamespace())
    assert logger._broken
    step(logger, 1)
    logger.log()


def test_moe_has_no_utilization(tmp_path: Path) -> None:
    from vllm_quant_plugin.checkpoint import read_checkpoint
    from vllm_quant_serve.metrics.accounting import ModelSize, model_size

    checkpoint = read_checkpoint(BUNDLED)
    assert model_size(checkpoint, 16) == ModelSize(WEIGHTS, 0)
    checkpoint.config["num_local_experts"] = 8
    assert model_size(checkpoint, 16) is None, "a token meets some experts only"


def test_energy_adds_up_what_nvml_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_quant_serve.metrics.energy import EnergyMeter, open_meter, visible_devices

    counters = {0: 1_000_000, 3: 5_000_000}
    nvml = SimpleNamespace(nvmlDeviceGetTotalEnergyConsumption=lambda handle: counters[handle])
    meter = EnergyMeter(nvml, [0, 3])
    counters[0] += 2500
    counters[3] += 500
    assert meter.since_last() == pytest.approx(3.0), "millijoules of both devices"
    assert meter.since_last() == 0
    assert open_meter(1) is None, "no driver here"
    assert visible_devices(2, None) == [0, 1]
    assert visible_devices(2, "3,0,1") == [3, 0]
    assert visible_devices(1, "GPU-abc") == ["GPU-abc"]


def test_joules_per_token_are_absent_while_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    logger = make_logger(monkeypatch, tmp_path)
    step(logger, 40)
    logger.log()
    assert value("vqp_joules_per_token") is None, "no meter"
    logger.meter = SimpleNamespace(since_last=lambda: 12.0)
    logger.log()
    assert value("vqp_joules_per_token") == pytest.approx(0.3)
    assert value("vqp_energy_joules_total") == 12
    logger.log()
    assert value("vqp_joules_per_token") is None, "idle, a token has no energy"
    assert value("vqp_energy_joules_total") == 24
    logger.alone = False
    step(logger, 40)
    logger.log()
    assert value("vqp_joules_per_token") is None, "another API server has the other tokens"
