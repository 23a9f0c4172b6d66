"""The planner equals vLLM for random configurations; ``generated/seed-18.json`` holds what vLLM 0.32.0 answered."""

import json
import random
import sys
from pathlib import Path

import pytest

from tests.support import benchmark_module

FOLDER = Path(__file__).parents[1] / "generated"
RECORD = FOLDER / "seed-18.json"
# Configurations of other seeds for which the planner once answered otherwise, with vLLM 0.32.0's answers.
FOUND = json.loads((FOLDER / "found.json").read_text())["found"]
# Of the recorded configurations, those that vLLM is asked about again: one of each kind.
LIVE_KINDS = ("llava", "mistral3", "gemma3", "-awq", "-gptq", "-packed", "-fp8_block", "-int8", "moe", "deepseek_v3")


@pytest.fixture(scope="module")
def generated():
    configs = benchmark_module.load("planner_configs")
    module = benchmark_module.load("planner_generated")
    yield configs, module
    for name in ("planner_accuracy", "planner_configs", "planner_generated"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def record():
    return json.loads(RECORD.read_text())


def test_the_planner_answers_as_vllm_did(generated, record):
    configs, module = generated
    found = configs.generate(random.Random(record["seed"]), record["count"])
    cases = module.compare(found, module.recorded(RECORD))
    kinds = [case.kind for case in cases]
    assert [case for case in cases if case.kind not in ("equal", "refused")] == []
    assert kinds.count("equal") > 100
    assert kinds.count("refused") > 50


@pytest.mark.parametrize("found", FOUND, ids=[one["name"] for one in FOUND])
def test_the_planner_answers_as_vllm_where_it_once_did_not(generated, found):
    _, module = generated
    config = (found["name"], found["config"], found["kv_cache_dtype"])
    answers = [module.answer_of(row) for row in found["answers"]]
    cases = module.compare([config], answers)
    assert len(cases) == len(module.TP_SIZES)
    assert [case for case in cases if case.kind not in ("equal", "refused")] == []


@pytest.mark.engine
def test_vllm_still_answers_as_recorded(generated, record, tmp_path, monkeypatch):
    configs, module = generated
    monkeypatch.setenv("VLLM_PLUGINS", "")
    everything = configs.generate(random.Random(record["seed"]), record["count"])
    sizes = len(module.TP_SIZES)
    chosen = {next((i for i, one in enumerate(everything) if kind in one[0]), 0) for kind in LIVE_KINDS}
    asked = [everything[i] for i in sorted(chosen)]
    answers = module.answers_of(asked, tmp_path, (2,))
    recorded = module.recorded(RECORD)
    for i, answer in zip(sorted(chosen), answers, strict=True):
        before = recorded[i * sizes + module.TP_SIZES.index(2)]
        assert (answer.error, answer.weights, answer.blocks, answer.tokens) == (
            before.error, before.weights, before.blocks, before.tokens,
        ), everything[i][0]  # fmt: skip


def test_other_seeds_give_other_configurations(generated):
    configs, _ = generated
    one, same, other = (configs.generate(random.Random(seed), 60) for seed in (1, 1, 2))
    assert one == same
    assert one != other
