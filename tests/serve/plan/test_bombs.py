"""Questions that would take all time or memory: little is tried, or one line says why not; each has a process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from tests.serve.plan.conftest import load_config
from vllm_quant_plugin.errors import CheckpointError, NoFeasiblePlanError, UsageError
from vllm_quant_serve.plan import http
from vllm_quant_serve.plan.api import PlanRequest, make_plan
from vllm_quant_serve.plan.search import fit
from vllm_quant_serve.plan.search.placements import sizes

HUGE = 1 << 63


@pytest.fixture
def fitted(monkeypatch):
    """Counts the pipeline stages that are fitted: the unit of work of a plan."""
    from vllm_quant_serve.plan.search import heterogeneous

    found, original = [], fit.fit_stage

    def counted(context, place, stage):
        found.append(place)
        return original(context, place, stage)

    for module in (fit, heterogeneous):
        monkeypatch.setattr(module, "fit_stage", counted)
    return found


@pytest.mark.parametrize("name", ["llama-3.1-405b", "deepseek-v3", "llama-3.2-1b"])
@pytest.mark.parametrize(
    "options",
    [
        {}, {"objective": "throughput"}, {"objective": "latency"}, {"max_model_len": 131072, "concurrency": 10**6},
        {"slo_tpot": 1e-9}, {"slo_ttft": 1e-9, "objective": "cost"}, {"prompt_tokens": 2**31 - 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_hundred_thousand_nodes(model_folder, fitted, name, options):
    request = PlanRequest(model_folder(name), gpu=("h100:8",), nodes=100_000, **options)
    with contextlib.suppress(NoFeasiblePlanError):
        assert make_plan(request).device_count == 800_000
    assert len(fitted) < 1000


def test_many_kinds_of_many_devices(model_folder, fitted):
    kinds = ("t4:4096", "l4:4096", "a10:4096", "rtx3080:4096", "l40:100", "a30:4096", "v100:3000", "h100:1")
    with pytest.raises(NoFeasiblePlanError):
        make_plan(PlanRequest(model_folder("llama-3.2-1b"), gpu=kinds, max_model_len=2**31 - 1))
    assert len(fitted) < 10_000


@pytest.mark.parametrize(
    "options",
    [
        {"nodes": HUGE}, {"nodes": 10**6}, {"gpu": ("h100:1000000000",)}, {"gpu": ("h100:1",) * 10**5},
        {"gpu": (",".join(["h100:1"] * 10**5),)}, {"gpu": (), "gpu_memory": 1 << 34, "gpu_count": HUGE},
        {"gpu": (), "gpu_memory": 1 << 80}, {"gpu": (), "cpu": True, "pipeline_parallel_size": HUGE},
        {"max_model_len": HUGE}, {"max_num_seqs": 10**5000}, {"max_num_seqs": -(10**5000)},
        {"concurrency": HUGE}, {"prompt_tokens": HUGE},
        {"kv_cache_memory": 1 << 100}, {"tensor_parallel_size": HUGE}, {"data_parallel_size": HUGE},
        {"gpu_memory_utilization": float("nan")}, {"price": float("inf")},
    ],
    ids=lambda options: " ".join(options),
)  # fmt: skip
def test_absurd_numbers_are_refused_in_one_line(model_folder, options):
    with pytest.raises(UsageError) as caught:
        make_plan(PlanRequest(model_folder("llama-3.2-1b"), **{"gpu": ("h100:8",), **options}))
    assert len(f"{caught.value.message} {caught.value.hint}") < 300
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("options", [{"tensor_parallel_size": 10**6}, {"pipeline_parallel_size": 10**6}], ids=str)
def test_more_ranks_than_anything_has(model_folder, options):
    with pytest.raises(NoFeasiblePlanError):
        make_plan(PlanRequest(model_folder("llama-3.2-1b"), cpu=True, **options))


def test_a_model_of_endless_layers(model_folder):
    with pytest.raises(CheckpointError, match="num_hidden_layers"):
        make_plan(PlanRequest(model_folder("llama-3.2-1b", num_hidden_layers=10**9), gpu=("h100",)))


def test_sizes():
    assert sizes(1 << 60) == sizes(400)
    assert sizes(400)[-1] == 400
    assert sizes(20) == list(range(1, 17))


def test_a_prompt_of_many_chunks_takes_what_its_chunks_take(model_folder):
    """At 64 chunks each is computed; at 65,536 runs of them are, and the sum is the same to a part in a thousand."""
    folder = model_folder("llama-3.1-8b")

    def ttft(batched):
        plan = make_plan(PlanRequest(folder, gpu=("h100",), prompt_tokens=65536, max_num_batched_tokens=batched,
                                     max_model_len=131072, enforce_eager=True))  # fmt: skip
        return plan.prediction.ttft

    # 64 chunks of 1,024 tokens; 512 of 128, of which runs of eight are taken together.
    one_by_one, in_runs = ttft(1024), ttft(128)
    from vllm_quant_serve.plan.search import roofline

    original, roofline.MOST_CHUNKS = roofline.MOST_CHUNKS, 1 << 20
    try:
        assert ttft(1024) == one_by_one
        assert in_runs == pytest.approx(ttft(128), rel=1e-3)
    finally:
        roofline.MOST_CHUNKS = original


CONFINED = "import sys; from vllm_quant_serve.plan.child import confine; confine(); sys.stdin.buffer.read(); "


SPIN = "import os, pathlib; pathlib.Path({!r}).write_text(str(os.getpid()))\nwhile True: pass"


def bomb(monkeypatch, code):
    monkeypatch.setattr(http, "_CHILD", (sys.executable, "-c", CONFINED + code))


@pytest.mark.parametrize("code", ["bytearray(4 << 30)", "x = [0]\nwhile True: x += x", "import os; os.abort()"])
def test_a_memory_bomb_ends_alone(monkeypatch, code):
    bomb(monkeypatch, code)
    answer = asyncio.run(http.ask(b"{}", seconds=120))
    assert answer.status_code == 422
    assert "MiB" in json.loads(answer.body)["error"]["message"]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_time_bomb_is_killed(monkeypatch, tmp_path):
    written = tmp_path / "pid"
    bomb(
        monkeypatch,
        f"import os, pathlib; pathlib.Path({str(written)!r}).write_text(str(os.getpid()))\nwhile True: pass",
    )

    async def run():
        asked = asyncio.create_task(http.ask(b"{}", seconds=30))
        while not (written.exists() and written.read_text()):
            await asyncio.sleep(0.02)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        assert not alive(int(written.read_text())), "cancelled: the process has ended"
        return await http.ask(b"{}", seconds=0.5)

    answer = asyncio.run(run())
    assert answer.status_code == 422
    assert "0.5 s" in json.loads(answer.body)["error"]["message"]


def test_the_process_ends_when_its_client_leaves_and_another_is_answered_meanwhile(monkeypatch, tmp_path):
    written = tmp_path / "pid"
    bomb(
        monkeypatch,
        f"import os, pathlib; pathlib.Path({str(written)!r}).write_text(str(os.getpid()))\nwhile True: pass",
    )
    app = FastAPI()
    app.include_router(http.plan_router())

    @app.get("/livez")
    async def livez() -> str:
        return "yes"

    async def run():
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /plan HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
            while not (written.exists() and written.read_text()):
                await asyncio.sleep(0.02)
            assert (await client.get("/livez")).status_code == 200
            refused = await client.post("/plan", json={})
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "1"
            writer.close()
            pid = int(written.read_text())
            while alive(pid):
                await asyncio.sleep(0.02)
        server.should_exit = True
        await serving

    asyncio.run(asyncio.wait_for(run(), 120))


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422), (b"[1]", 422), (b"[" * 100_000, 422), (b'{"model": "m", "nodes": ' + b"9" * 5000 + b"}", 422),
        (json.dumps({"model": "m", "config": {**load_config("llama-3.2-1b"), "num_hidden_layers": 10**9},
                     "gpu": ["h100"]}).encode(), 422),
        (json.dumps({"model": "m", "config": load_config("llama-3.2-1b"), "gpu": ["h100:8"], "nodes": 10**5}).encode(),
         200),
    ],
    ids=["empty", "list", "deep", "digits", "layers", "nodes"],
)  # fmt: skip
def test_bodies(body, status):
    answer = asyncio.run(http.ask(body))
    assert answer.status_code == status
    if status != 200:
        assert json.loads(answer.body)["error"]["exit_code"] in (2, 6)
