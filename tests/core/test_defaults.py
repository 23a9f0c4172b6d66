"""What the planner takes for transformers' defaults is what the installed transformers assumes."""

import json
from pathlib import Path

import pytest

from tests.support.benchmark_module import FOLDER
from vllm_quant_plugin.architecture.defaults import checks_heads, completed, part_type, ties_as_text

ROOT = FOLDER.parent


def test_the_table_is_that_of_the_installed_transformers():
    pytest.importorskip("transformers")
    import importlib.util

    spec = importlib.util.spec_from_file_location("transformers_defaults", ROOT / "scripts/transformers_defaults.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kept = json.loads((ROOT / "vllm_quant_plugin/architecture/defaults.json").read_text())
    assert kept == json.loads(json.dumps(module.table()))


@pytest.mark.parametrize("model_type", ["llama", "mistral", "granite", "gemma3_text", "mixtral", "glm4"])
def test_a_config_is_completed_as_transformers_completes_it(model_type):
    from transformers import CONFIG_MAPPING

    given = {"hidden_size": 512, "num_attention_heads": 8}
    theirs = CONFIG_MAPPING[model_type](**given)
    for key, value in completed(given, model_type).items():
        assert getattr(theirs, key) == value, key


def test_other_names_of_a_key_count():
    assert completed({"num_experts": 4}, "mixtral")["num_local_experts"] == 4
    assert completed({}, "no_such_model") == {}


def test_parts_of_multimodal_models():
    assert part_type("llava", "text_config") == "llama"
    assert part_type("mistral3", "vision_config") == "pixtral"
    assert ties_as_text("llava")
    assert not ties_as_text("gemma3")
    assert checks_heads("llama")
    assert not checks_heads("qwen3")


def test_the_file_is_packaged_beside_its_module():
    import vllm_quant_plugin.architecture.defaults as module

    assert Path(module.__file__).with_name("defaults.json").exists()
