"""The admin app: probes, plan, metrics and status in every state, and who may ask."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

import vllm_quant_plugin
from vllm_quant_plugin.errors import StartupError, UsageError
from vllm_quant_serve.admin.app import build_app
from vllm_quant_serve.admin.server import AdminServer, bind
from vllm_quant_serve.flags import parse_args
from vllm_quant_serve.launch import build_launch
from vllm_quant_serve.supervise.actuals import Actuals
from vllm_quant_serve.supervise.history import History
from vllm_quant_serve.supervise.options import SuperviseOptions
from vllm_quant_serve.supervise.report import Report
from vllm_quant_serve.supervise.run_directory import RunDirectory
from vllm_quant_serve.supervise.session import Session
from vllm_quant_serve.supervise.state import State

BUNDLED = Path(vllm_quant_plugin.__file__).parent / "data" / "stdlib-llama"


def make_session(tmp_path: Path) -> Session:
    launch = build_launch(parse_args(["org/model", "--api-key", "secret-key"]), [])
    return Session(launch, RunDirectory(tmp_path), Report(as_json=True), SuperviseOptions(), {"max_model_len": 512})


def ask(session: Session, path: str, token: str | None = None, method: str = "GET", **kwargs: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app=build_app(session, token))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:9") as client:
            return await client.request(method, path, **kwargs)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("state", "alive", "ready"),
    [
        (State.STARTING, 200, 503),
        (State.READY, 200, 200),
        (State.UNHEALTHY, 200, 503),
        (State.HUNG, 503, 503),
        (State.RESTARTING, 200, 503),
        (State.DRAINING, 200, 503),
        (State.STOPPED, 503, 503),
    ],
)
def test_probes(tmp_path: Path, state: State, alive: int, ready: int) -> None:
    session = make_session(tmp_path)
    session.state = state
    assert ask(session, "/livez").status_code == alive
    answer = ask(session, "/readyz")
    assert (answer.status_code, answer.text) == (ready, f"{state.value}\n")


def test_plan_and_status(tmp_path: Path) -> None:
    session = make_session(tmp_path)
    session.report.event("plan", "a plan")
    plan = ask(session, "/plan").json()
    assert plan["plan"] == {"max_model_len": 512}
    assert plan["command"].startswith("vllm serve org/model")
    status = ask(session, "/status").json()
    assert status["state"] == "starting"
    assert status["events"][0]["message"] == "a plan"
    assert status["in_flight"] is None, "unknown is no zero"
    for path in ("/plan", "/status", "/metrics", "/"):
        assert "secret-key" not in ask(session, path).text


def test_metrics_say_what_is_known(tmp_path: Path) -> None:
    session = make_session(tmp_path)
    session.counts.failed("device-memory")
    session.counts.retries = 1
    families = {f.name: f for f in text_string_to_metric_families(ask(session, "/metrics").text)}
    causes = {s.labels["cause"]: s.value for s in families["vqp_start_failures"].samples}
    assert causes["device-memory"] == 1
    assert causes["port"] == 0
    assert families["vqp_start_retries"].samples[0].value == 1
    assert families["vqp_server_ready"].samples[0].value == 0
    assert "vqp_start_seconds" not in families, "not known yet"
    assert "vqp_requests_in_flight" not in families
    session.load_seconds = 12.5
    assert "vqp_start_seconds 12.5" in ask(session, "/metrics").text


def test_a_token_guards_all_but_the_probes(tmp_path: Path) -> None:
    session = make_session(tmp_path)
    session.state = State.READY
    assert ask(session, "/readyz", "t0ken").status_code == 200
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer "}):
        assert ask(session, "/status", "t0ken", headers=headers).status_code == 401
    assert ask(session, "/status", "t0ken", headers={"Authorization": "Bearer t0ken"}).status_code == 200


def test_without_a_token_only_loopback_names_are_answered(tmp_path: Path) -> None:
    session = make_session(tmp_path)
    assert ask(session, "/status", headers={"Host": "evil.example:8001"}).status_code == 421
    assert ask(session, "/status", headers={"Host": "localhost:8001"}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"Content-Length": str(1 << 20)}, 413), ({"Transfer-Encoding": "chunked"}, 411), ({"Content-Length": "x"}, 411)],
)
def test_bodies_are_bounded(tmp_path: Path, headers: dict[str, str], status: int) -> None:
    assert ask(make_session(tmp_path), "/plan", method="POST", headers=headers).status_code == status


def test_a_planning_question_is_answered(tmp_path: Path) -> None:
    body = {"model": str(BUNDLED), "gpu": ["h100"], "max_model_len": 256}
    answer = ask(make_session(tmp_path), "/plan", method="POST", json=body)
    assert answer.status_code == 200
    assert answer.json()["max_model_len"] == 256
    refused = ask(make_session(tmp_path), "/plan", "t0ken", method="POST", json=body)
    assert refused.status_code == 401


def test_one_plan_is_made_at_a_time(tmp_path: Path) -> None:
    async def run() -> list[int]:
        transport = httpx.ASGITransport(app=build_app(make_session(tmp_path)))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:9") as client:
            body = {"model": str(BUNDLED), "gpu": ["h100"]}
            answers = await asyncio.gather(*(client.post("/plan", json=body) for _ in range(4)))
            return sorted(answer.status_code for answer in answers)

    assert asyncio.run(run()) == [200, 503, 503, 503]


def test_where_it_listens() -> None:
    with pytest.raises(UsageError, match="token"):
        bind("0.0.0.0", None, 8000, None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StartupError, match=str(port)):
            bind("127.0.0.1", port, 8000, None)
        with bind("127.0.0.1", None, port - 1, None) as other:
            assert other.getsockname()[1] not in (0, port), "the next port is taken, so any free one"


def test_small_answers_are_not_held_back() -> None:
    """asyncio switches Nagle's algorithm off for sockets that name their protocol."""
    with bind("127.0.0.1", 0, 1, None) as listening:
        assert listening.proto == socket.IPPROTO_TCP


def test_it_answers_in_the_supervisors_loop(tmp_path: Path) -> None:
    async def run() -> list[float]:
        server = AdminServer(make_session(tmp_path), bind("127.0.0.1", 0, 1, None), None)
        server.start()
        taken = []
        async with httpx.AsyncClient(base_url=server.address) as client:
            for path in ("/livez", "/status", "/metrics", "/"):
                begin = time.monotonic()
                answer = await client.get(path)
                taken.append(time.monotonic() - begin)
                assert answer.status_code == 200
                assert answer.text
        await server.stop()
        return taken

    assert len(asyncio.run(run())) == 4


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    answer = ask(make_session(tmp_path), "/")
    page = answer.text.replace("http://www.w3.org/2000/svg", "")
    assert "http://" not in page
    assert "https://" not in page
    assert "innerHTML" not in page, "what the server says is text, never markup"
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_actuals_from_the_log() -> None:
    found = Actuals()
    for line in (
        "(Worker_TP0 pid=3) INFO [gpu_model_runner.py:5150] Model loading took 4.50 GiB memory and 3.1 seconds",
        "(Worker_TP1 pid=4) INFO [gpu_model_runner.py:5150] Model loading took 4.25 GiB memory and 3.2 seconds",
        "(Worker pid=11484) INFO [cpu_worker.py:260] Explicitly set (8.50/23.59) GiB for KV cache on node 0.",
        "(EngineCore pid=1) INFO 11-20 16:09:21 [kv_cache_utils.py:2327] CPU KV cache size: 16,384 tokens, Maximum",
    ):  # fmt: skip
        assert found.read(line)
    assert not found.read("INFO ready")
    assert not Actuals().read("Explicitly set (0.06/23.59) GiB for KV cache on node 0."), "more rounding than figure"
    assert found.known() == {"weight_bytes": int(4.5 * 2**30), "kv_bytes": int(8.5 * 2**30), "kv_tokens": 16384}
    assert Actuals().known() == {}


SCRAPE = """
vllm:num_requests_running{{engine="0"}} 3.0
vllm:num_requests_running{{engine="1"}} 4.0
vllm:kv_cache_usage_perc{{engine="0"}} 0.25
vllm:kv_cache_usage_perc{{engine="1"}} 0.5
vqp_time_to_first_byte_seconds_sum{{engine="0"}} {total}
vqp_time_to_first_byte_seconds_count{{engine="0"}} {count}
"""


def test_history() -> None:
    history = History()
    history.add(SCRAPE.format(total=10.0, count=5), 100.0)
    history.add(SCRAPE.format(total=13.0, count=11), 105.0)
    history.add(SCRAPE.format(total=13.0, count=11), 110.0)
    first, second, third = history.to_json()
    assert first == {"time": 100.0, "running": 7.0, "kv_usage": 0.5}
    assert second["ttft"] == pytest.approx(0.5)
    assert "ttft" not in third, "no request ended: no mean, not zero"
    history.forget()
    history.add(SCRAPE.format(total=1.0, count=1), 115.0)
    assert "ttft" not in history.to_json()[-1], "a new server's counters begin anew"
