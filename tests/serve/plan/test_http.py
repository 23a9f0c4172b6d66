"""``POST /plan`` gives what the command line gives."""

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.serve.plan.conftest import load_config
from vllm_quant_serve.plan.api import PlanRequest, make_plan
from vllm_quant_serve.plan.http import plan_router


@pytest.fixture(scope="module")
def client():
    app = FastAPI()
    app.include_router(plan_router())
    return TestClient(app)


def test_a_folder(client, model_folder):
    folder = model_folder("llama-3.1-8b")
    answer = client.post("/plan", json={"model": folder, "gpu": ["h100:2"], "max_model_len": 8192})
    assert answer.status_code == 200
    plan = make_plan(PlanRequest(folder, gpu=("h100:2",), max_model_len=8192)).to_dict()
    assert answer.json()["kv_tokens"] == plan["kv_tokens"]
    assert answer.json()["serve_args"] == plan["serve_args"]


def test_a_config_inline(client):
    answer = client.post("/plan", json={"model": "mine", "config": load_config("qwen3-8b"), "gpu": ["l40s"]})
    assert answer.status_code == 200
    assert answer.json()["architecture"] == "Qwen3ForCausalLM"


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"model": "mine", "config": {"architectures": ["LlamaForCausalLM"]}, "gpu": ["h100"]}, 422, "missing"),
        ({"model": "no/such/model", "gpu": ["abacus"]}, 422, "abacus"),
        ({"gpu": ["h100"]}, 422, "model: Field required"),
        ({"model": "mine", "gpus": ["h100"]}, 422, "gpus: Extra inputs"),
        ({"model": "mine", "exact": True}, 422, "exact: Extra inputs"),
        (
            {"model": "mine", "config": load_config("llama-3.3-70b"), "gpu": ["l4"], "max_model_len": 4096},
            409,
            "weights",
        ),
    ],
)
def test_errors_are_the_command_lines(client, body, status, message):
    answer = client.post("/plan", json=body)
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]
