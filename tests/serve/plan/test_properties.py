"""Properties that hold for every model and device, and configs that nobody sane would write."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_quant_plugin.architecture.families import describe
from vllm_quant_plugin.architecture.families.support import REMOVED
from vllm_quant_plugin.architecture.placement import Placement, stage_layers
from vllm_quant_plugin.checkpoint import Checkpoint
from vllm_quant_plugin.errors import NoFeasiblePlanError, VqpError
from vllm_quant_serve.plan.api import Plan, PlanRequest, make_plan
from vllm_quant_serve.plan.devices.gpus import GIB, GPUS
from vllm_quant_serve.plan.memory.kv import KvSettings, kv_layout
from vllm_quant_serve.plan.memory.weights import WeightModel

CONFIGS = {path.stem: json.loads(path.read_text()) for path in (Path(__file__).parent / "configs").glob("*.json")}
SMALL = ("llama-3.2-1b", "gemma-3-1b", "falcon-h1-0.5b", "deepseek-v2-lite", "granite-4.0-h-tiny", "qwen3-0.6b")
HOSTILE = (
    None, "", "32", -1, 0, 1, 3, 7, 10**9, 10**40, 1e308, float("inf"), float("nan"), 0.5, True, [], {}, [[]], [None],
           {"text_config": {}}, "\x00", ["x"] * 9, {"factor": "9"}, {"rope_type": "yarn", "factor": 1e300},
)  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for name in SMALL:
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(CONFIGS[name]))
    return root


def _used(plan):
    return plan.tensor_parallel_size * plan.pipeline_parallel_size * plan.data_parallel_size


def _strained(plan):
    """Whether it fits only with settings that nobody asked for, or not at the pessimistic end."""
    changed = {"--max-num-seqs", "--gpu-memory-utilization", "--kv-cache-dtype"}
    return bool(changed & plan.flags.keys()) or any(note.startswith("tight") for note in plan.notes)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(SMALL), gib=st.integers(4, 160), more=st.integers(1, 80), length=st.integers(1, 32_768))
def test_more_memory_never_plans_less(folders, name, gib, more, length):
    """Nor more devices, unless the plan for less memory was strained and the one for more is not."""
    model = str(folders / name)
    try:
        small = make_plan(PlanRequest(model, gpu_memory=gib * GIB, gpu_count=2, max_model_len=length))
    except NoFeasiblePlanError:
        return
    large = make_plan(PlanRequest(model, gpu_memory=(gib + more) * GIB, gpu_count=2, max_model_len=length))
    if _used(large) > _used(small):
        assert _strained(small)
        assert not _strained(large)
    same = all(
        getattr(large, name) == getattr(small, name)
        for name in ("tensor_parallel_size", "pipeline_parallel_size", "max_num_seqs", "gpu_memory_utilization",
                     "kv_cache_dtype")
    )  # fmt: skip
    if same:
        assert large.kv_blocks >= small.kv_blocks or _larger_batches(small.memory_total, large.memory_total)


def _larger_batches(small: int, large: int) -> bool:
    """vLLM raises its batch defaults at 70 and 160 GiB, which costs activations."""
    return any(small < limit * GIB <= large for limit in (70, 160))


@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from(SMALL), gpu=st.sampled_from(sorted(GPUS)), count=st.integers(1, 8),
    utilization=st.floats(0.1, 1.0), concurrency=st.integers(1, 64),
)  # fmt: skip
def test_a_plan_never_exceeds_a_device_and_survives_json(folders, name, gpu, count, utilization, concurrency):
    request = PlanRequest(
        str(folders / name), gpu=(f"{gpu}:{count}",), gpu_memory_utilization=utilization, concurrency=concurrency
    )
    try:
        plan = make_plan(request)
    except NoFeasiblePlanError:
        return
    used = plan.weight_bytes_per_rank + plan.overhead_bytes.value + plan.kv_bytes.value
    assert used <= plan.memory_budget <= plan.memory_total
    ranks = plan.tensor_parallel_size * plan.pipeline_parallel_size * plan.data_parallel_size
    assert 1 <= ranks <= count == plan.device_count
    assert plan.max_concurrency >= concurrency
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(SMALL), first=st.sampled_from(sorted(GPUS)), second=st.sampled_from(sorted(GPUS)),
    counts=st.tuples(st.integers(1, 5), st.integers(1, 5)), length=st.integers(1024, 131_072),
)  # fmt: skip
def test_unequal_devices_are_not_exceeded_either(folders, name, first, second, counts, length):
    request = PlanRequest(str(folders / name), gpu=(f"{first}:{counts[0]},{second}:{counts[1]}",), max_model_len=length)
    try:
        plan = make_plan(request)
    except NoFeasiblePlanError:
        return
    used = plan.weight_bytes_per_rank + plan.overhead_bytes.value + plan.kv_bytes.value
    assert used <= plan.memory_budget <= plan.memory_total
    assert plan.tensor_parallel_size * plan.pipeline_parallel_size <= sum(counts)
    assert plan.stage_layers == () or sum(plan.stage_layers) == len(describe(CONFIGS[name]).layers)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@settings(max_examples=200, deadline=None)
@given(layers=st.integers(1, 200), pp=st.integers(1, 32))
def test_stages_hold_every_layer_once(layers, pp):
    stages = stage_layers(layers, pp) if pp <= layers else [layers]
    assert sum(stages) == layers
    assert max(stages) - min(stages) <= 1


@pytest.mark.parametrize("name", sorted(name for name in CONFIGS if CONFIGS[name]["architectures"][0] not in REMOVED))
def test_ranks_together_hold_at_least_the_model(name):
    config = {k: v for k, v in CONFIGS[name].items() if k != "quantization_config"}
    arch = describe(config)
    model = WeightModel(arch, None, 2)
    whole = model.weights(Placement()).parameters[0]
    for tp in (2, 4, 8):
        if next(model.refusals(Placement(tp)), None) is None:
            rank = model.weights(Placement(tp)).parameters[0]
            assert whole <= rank * tp
            assert rank < whole
    layout = kv_layout(arch.layers, 1, 1, KvSettings())
    assert layout.needed_bytes(4096, 2) > layout.needed_bytes(4096, 1) > 0
    assert layout.needed_bytes(4096, 1) >= layout.needed_bytes(64, 1)


def few_layers(config: dict) -> dict:
    """The same model with four layers: what a config makes of one layer does not depend on their number."""
    found = {key: value[:4] if isinstance(value, list) and len(value) > 8 else value for key, value in config.items()}
    for key in ("num_hidden_layers", "encoder_layers", "decoder_layers"):
        if key in found:
            found[key] = 4
    if "hybrid_override_pattern" in found:
        found["hybrid_override_pattern"] = "M*-M"
    return found


def hostile(rng: random.Random) -> object:
    """A real config with a few keys removed, replaced, nested, or a document that is none."""
    if rng.random() < 0.02:
        return rng.choice([[], "config", 7, None, {}])
    config = dict(rng.choice(list(CONFIGS.values())))
    config = few_layers(config) if rng.random() < 0.95 else config
    for _ in range(rng.randint(1, 4)):
        key = rng.choice(list(config) or ["x"])
        action = rng.random()
        if action < 0.2:
            config.pop(key, None)
        elif action < 0.8:
            config[key] = rng.choice(HOSTILE)
        elif action < 0.9:
            config = {"model_type": rng.choice(["mystery", "llava", 3]), "text_config": config}
        else:
            config["model_type"] = rng.choice([*{c["model_type"] for c in CONFIGS.values()}, "mystery", ""])
    return config


def test_ten_thousand_hostile_configs_give_a_plan_or_one_line():
    rng = random.Random(20_261_120)
    plans, messages = 0, []
    for _ in range(10_000):
        config = json.loads(json.dumps(hostile(rng)))
        try:
            make_plan(PlanRequest("hostile", gpu=("h100:2",)), Checkpoint(Path("hostile"), config))
            plans += 1
        except VqpError as error:
            messages.append(error.message)
    assert plans > 1000
    assert len(messages) > 1000
    assert all(message and "\n" not in message and len(message) < 2000 for message in messages)
