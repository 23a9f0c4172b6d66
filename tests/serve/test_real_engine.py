"""``vllm-quant serve`` around the real vLLM on the bundled model.

One server for the whole file: it takes half a minute to start. The last test stops it.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

import vllm_quant_plugin
from tests.support.chromium import chromium
from tests.support.prometheus import prometheus
from tests.support.supervised import Supervised, can_bind, wait_gone
from vllm_quant_serve.dashboards.build import PANELS, RULES
from vllm_quant_serve.plan.memory.ledger import accuracy

pytestmark = pytest.mark.engine

BUNDLED = Path(vllm_quant_plugin.__file__).parent / "data" / "stdlib-llama"
KV_BYTES = 64 << 20
# conftest.py makes engines run in the test's own process; a server's must not.
ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_LOGGING_LEVEL": "INFO"}
KEY = "a-key-that-must-not-be-seen"
FLAGS = ["--served-model-name", "small", "--max-model-len", "512", "--enforce-eager", "--api-key", KEY,
          "--kv-cache-memory-bytes", "64M", "--slo-ttft", "30", "--slo-tpot", "5", "--price", "2.5",
          "--drain-timeout", "110"]  # fmt: skip


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state") / "launches.sqlite"


@pytest.fixture(scope="module")
def server(ledger: Path) -> Iterator[Supervised]:
    command = [str(Path(sys.executable).with_name("vllm-quant")), "serve", str(BUNDLED), "--json", "--cpu"]
    with Supervised(*FLAGS, command=command, environment={**ENVIRONMENT, "VQP_LEDGER": str(ledger)}) as running:
        running.wait_event("ready", timeout=400)
        yield running


def client(server: Supervised) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=60)


def samples(server: Supervised) -> dict[tuple[str, str | None], float]:
    """(name, source label) -> value of the plugin's metrics."""
    text = httpx.get(f"{server.url}/metrics", timeout=30).text
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("vqp_"):
                assert sample.labels["model_name"] == "small"
                found[sample.name, sample.labels.get("source")] = sample.value
    return found


def test_the_plan_and_the_line_were_told(server: Supervised) -> None:
    assert server.names()[:2] == ["plan", "command"]
    plan, command = server.events[0]["plan"], server.events[1]
    assert command["argv"][:3] == ["vllm", "serve", str(BUNDLED)]
    assert "--host 127.0.0.1" in command["message"]
    assert plan["max_model_len"] == 512
    assert plan["kv_bytes"]["value"] == KV_BYTES


def test_the_api_key_is_seen_nowhere(server: Supervised) -> None:
    assert httpx.get(f"{server.url}/v1/models").status_code == 401
    assert client(server).models.list().data[0].id == "small"
    assert KEY not in server.logged()
    assert all(KEY not in str(event) for event in server.events)
    for process in server.descendants():
        assert KEY not in " ".join(process.cmdline())


def test_metrics_plan_against_actual(server: Supervised) -> None:
    found = samples(server)
    assert found["vqp_quantization_info", None] == 1
    assert found["vqp_weight_bits", None] == 16
    assert found["vqp_checkpoint_bytes", None] == pytest.approx(
        (BUNDLED / "model.safetensors").stat().st_size, rel=0.01
    )
    # 2 x 8 layers x 2 KV heads x 64 x 2 bytes per token: the plan is exact when the bytes are pinned.
    assert found["vqp_kv_cache_tokens", "plan"] == KV_BYTES // (2 * 8 * 2 * 64 * 2)
    assert found["vqp_kv_cache_tokens", "actual"] == found["vqp_kv_cache_tokens", "plan"]
    assert 0 < found["vqp_load_seconds", None] < 400


def test_the_launch_is_kept_for_later_plans(server: Supervised, ledger: Path) -> None:
    (figure,) = accuracy(ledger)
    assert (figure.figure, figure.launches, figure.worst) == ("KV tokens, pinned", 1, 0.0)


def test_completions_stream_and_rates_follow(server: Supervised) -> None:
    begin = time.monotonic()
    stream = client(server).completions.create(model="small", prompt="def main(", max_tokens=48, stream=True,
                                               extra_body={"ignore_eos": True})  # fmt: skip
    chunks = [next(stream)]
    waited = time.monotonic() - begin
    chunks += list(stream)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert len("".join(chunk.choices[0].text for chunk in chunks)) > 20
    # Rates are those of the last seconds: a slow machine has answered the prompt above long ago.
    client(server).completions.create(model="small", prompt="def main(", max_tokens=2)
    ttft = httpx.get(f"{server.event('admin')['url']}/status", timeout=30).json()["ttft"]
    assert ttft["answers"] == 1
    assert 0 < ttft["p50"] == ttft["p99"] <= waited, "the client's time, without its way there and back"
    found = samples(server)
    assert found["vqp_generation_tokens_per_second", None] > 0
    assert found["vqp_prompt_tokens_per_second", None] > 0


def test_every_panel_and_rule_has_data_in_a_real_prometheus(server: Supervised, tmp_path: Path) -> None:
    admin = server.event("admin")["url"].removeprefix("http://")
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            client(server).completions.create(model="small", prompt="import os", max_tokens=16,
                                              extra_body={"ignore_eos": True})  # fmt: skip

    reader = threading.Thread(target=load)
    reader.start()
    try:
        with prometheus(tmp_path, [f"127.0.0.1:{server.port}", admin], RULES) as one:
            empty = []
            for panel in PANELS:
                # vLLM tells no weight bytes on a CPU; a CPU has no stated peaks and no energy counter.
                for query, _ in () if panel.gpu else panel.queries:
                    asked = query.replace("$__rate_interval", "20s").replace("$model", ".*")
                    if not one.wait_for(asked, timeout=45):
                        empty.append((panel.title, asked))
            assert empty == []
            rules = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
            for rule in rules:
                one.query(rule["expr"])
                for selector in re.findall(r"[a-z]+:?[a-z_]+(?:\{[^}]*\})?", rule["expr"]):
                    if selector.startswith(("vqp_", "vllm:")):
                        assert one.wait_for(selector), (rule["alert"], selector)
            firing = [alert["metric"]["alertname"] for alert in one.query('ALERTS{alertstate="firing"}')]
            assert firing == [], "a healthy server raises no alarm"
    finally:
        stop.set()
        reader.join()


def test_the_status_page_shows_this_run(server: Supervised, tmp_path: Path) -> None:
    """VQP_SCREENSHOT names where to keep the picture, e.g. docs/guide/status-page.png."""
    with chromium() as page:
        page.size(1100, 800)
        page.open(server.event("admin")["url"])
        page.wait_for("document.getElementById('state')?.textContent === 'ready'")
        assert page.wait_for("document.querySelectorAll('#tokens path').length") >= 1
        assert page.ask("document.getElementById('model').textContent") == "small"
        rows = page.ask("[...document.querySelectorAll('#figures tr')].map(row => row.innerText).join('\\n')")
        (tokens,) = (row.split() for row in rows.splitlines() if row.startswith("KV tokens"))
        planned = f"{KV_BYTES // 4096:,}"
        assert tokens[-3:] == [planned, planned, "0.0"], "a pinned cache is planned exactly"
        assert page.console == []
        page.screenshot(Path(os.environ.get("VQP_SCREENSHOT", tmp_path / "page.png")))


def test_sigterm_finishes_live_streams_and_leaves_nothing(server: Supervised) -> None:
    processes = server.descendants()
    assert len(processes) >= 3
    finished: list[str | None] = []
    begun = threading.Semaphore(0)

    def read() -> None:
        stream = client(server).completions.create(model="small", prompt="import os", max_tokens=200, stream=True,
                                                   extra_body={"ignore_eos": True})  # fmt: skip
        begun.release()
        finished.append(list(stream)[-1].choices[0].finish_reason)

    readers = [threading.Thread(target=read) for _ in range(8)]
    for reader in readers:
        reader.start()
    for _ in readers:
        assert begun.acquire(timeout=60)
    server.send(signal.SIGTERM)
    server.wait_event("draining")
    refused = httpx.post(f"{server.url}/v1/completions", json={"model": "small", "prompt": "x"},
                         headers={"Authorization": f"Bearer {KEY}"})  # fmt: skip
    assert refused.status_code == 503
    assert server.wait_exit(120) == 0
    for reader in readers:
        reader.join(10)
    assert finished == ["length"] * 8
    assert wait_gone(processes) == []
    assert can_bind(server.port)
    assert server.run_dirs() == []
