"""The metrics without an engine: facts of a model, rates, and the merge over API server processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry, generate_latest

import vllm_quant_plugin
from vllm_quant_plugin.formats import parse_quantization_config
from vllm_quant_serve.metrics.catalogue import METRICS, metrics
from vllm_quant_serve.metrics.facts import read_facts
from vllm_quant_serve.metrics.rates import SlidingRate

BUNDLED = Path(vllm_quant_plugin.__file__).parent / "data" / "stdlib-llama"
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}


def config_of(model: str, quantization: str | None = None, quant_config: object = None) -> SimpleNamespace:
    model_config = SimpleNamespace(model=model, revision=None, quantization=quantization)
    return SimpleNamespace(model_config=model_config, quant_config=quant_config)


def test_facts_of_a_16_bit_model() -> None:
    facts = read_facts(config_of(str(BUNDLED)))
    header = (BUNDLED / "model.safetensors").read_bytes()[:8]
    size = (BUNDLED / "model.safetensors").stat().st_size - 8 - int.from_bytes(header, "little")
    assert (facts.method, facts.scheme, facts.weight_bits) == ("none", "16-bit", 16)
    assert facts.checkpoint_bytes == size


def test_facts_of_a_quantized_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": AWQ}))
    facts = read_facts(config_of(str(tmp_path), "vqp_awq"))
    assert (facts.method, facts.scheme, facts.weight_bits) == ("vqp_awq", "INT4 g128 asym", 4)
    assert facts.checkpoint_bytes is None, "a folder without weights says nothing about bytes"


def test_the_plugins_own_config_wins_over_the_checkpoint() -> None:
    online = SimpleNamespace(model=parse_quantization_config(AWQ))
    assert read_facts(config_of(str(BUNDLED), "vqp_int8", online)).weight_bits == 4


def test_what_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "mystery"}}))
    for model in (str(tmp_path), "org/not-in-the-cache", "no such\nthing"):
        facts = read_facts(config_of(model, "mystery"))
        assert (facts.method, facts.scheme, facts.weight_bits, facts.checkpoint_bytes) == ("mystery", None, None, None)


def test_rate_over_a_window() -> None:
    rate = SlidingRate(10.0)
    for tenth in range(1000):
        rate.add(tenth / 10, 5)
    assert rate.rate(99.9) == pytest.approx(50, rel=0.06)
    assert rate.rate(104.9) == pytest.approx(25, rel=0.1)
    assert rate.rate(120.0) == 0.0


def test_rate_of_a_short_burst_is_not_diluted() -> None:
    rate = SlidingRate(10.0)
    for tenth in range(11):
        rate.add(100 + tenth / 10, 5)
    assert rate.rate(101.0) == pytest.approx(55)
    rate.rate(200.0)
    rate.add(300.0, 1)
    rate.add(301.0, 1)
    assert rate.rate(301.0) == pytest.approx(2), "a new burst starts its own clock"


def test_rate_keeps_constant_memory() -> None:
    rate = SlidingRate(10.0)
    for step in range(100_000):
        rate.add(step / 1000, 1)
    assert len(rate._buckets) <= 210


def test_names_follow_prometheus_conventions() -> None:
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names))
    for metric in METRICS:
        assert metric.name.startswith("vqp_")
        assert metric.labels[0] == "model_name", "without labels a metric would start at 0 before it is known"
        assert not metric.name.endswith("_total"), "prometheus_client adds it to counters"
        assert metric.help.endswith(".")


def test_nothing_is_exported_before_it_is_known() -> None:
    registry = CollectorRegistry()
    metrics(registry)
    samples = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
    assert samples == []


PROCESS = """
import sys
from vllm_quant_serve.metrics.catalogue import metrics
found = metrics()
found["vqp_weight_bits"].labels("m").set(4)
found["vqp_generation_tokens_per_second"].labels("m", "0").set(float(sys.argv[1]))
input()
"""


def test_several_api_servers_are_merged(tmp_path: Path) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    collect = (
        "from prometheus_client import CollectorRegistry, generate_latest\n"
        "from prometheus_client.multiprocess import MultiProcessCollector\n"
        "registry = CollectorRegistry(); MultiProcessCollector(registry)\n"
        "print(generate_latest(registry).decode())"
    )
    servers = [
        subprocess.Popen([sys.executable, "-c", PROCESS, rate], env=environment, stdin=subprocess.PIPE)
        for rate in ("30", "12")
    ]
    try:
        expected = ['vqp_weight_bits{model_name="m"} 4.0',
                    'vqp_generation_tokens_per_second{engine="0",model_name="m"} 42.0']  # fmt: skip
        for _ in range(60):
            text = subprocess.run([sys.executable, "-c", collect], env=environment, capture_output=True, text=True)
            if all(line in text.stdout.splitlines() for line in expected):
                break
        for line in expected:
            assert line in text.stdout.splitlines()
        assert "vqp_checkpoint_bytes{" not in text.stdout
    finally:
        for server in servers:
            server.communicate(b"\n", timeout=20)
