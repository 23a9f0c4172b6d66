"""A config's lists with one entry per layer are refused where transformers refuses them."""

import pytest

from vllm_quant_plugin.architecture.families import describe
from vllm_quant_plugin.architecture.families.layer_lists import ATTENTION_KINDS, MLP_KINDS
from vllm_quant_plugin.errors import CheckpointError

FULL, SLIDING = "full_attention", "sliding_attention"
LISTS = {
    "one for each": {"layer_types": [FULL, SLIDING]},
    "too few": {"layer_types": [FULL]},
    "too many": {"layer_types": [FULL] * 3},
    "unknown": {"layer_types": [FULL, "no_such_attention"]},
    "an older name": {"layer_types": [FULL, "attention"]},
    "feed-forwards": {"layer_types": [FULL] * 2, "mlp_layer_types": ["dense", "sparse"]},
    "too few feed-forwards": {"layer_types": [FULL] * 2, "mlp_layer_types": ["dense"]},
    "an unknown feed-forward": {"layer_types": [FULL] * 2, "mlp_layer_types": ["dense", FULL]},
}


def test_the_names_are_those_of_transformers():
    theirs = pytest.importorskip("transformers.configuration_utils")
    assert {*theirs.ALLOWED_ATTN_LAYER_TYPES, *theirs._LEGACY_LAYER_TYPE_REMAP} == ATTENTION_KINDS
    assert set(theirs.ALLOWED_MLP_LAYER_TYPES) == MLP_KINDS


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen3", "gemma3_text", "cohere2"])
@pytest.mark.parametrize("lists", LISTS.values(), ids=LISTS)
def test_lists_are_refused_as_transformers_refuses_them(model_type, lists):
    transformers = pytest.importorskip("transformers")
    errors = pytest.importorskip("huggingface_hub.errors")
    config = {"model_type": model_type, "num_hidden_layers": 2, "hidden_size": 256, "num_attention_heads": 4,
              "num_key_value_heads": 4, "intermediate_size": 512, "vocab_size": 1000, **lists}  # fmt: skip
    theirs = transformers.CONFIG_MAPPING[model_type].from_dict
    assert refused(describe, config, CheckpointError) == refused(theirs, config, errors.StrictDataclassError)


def refused(read, config, error):
    try:
        read(config)
    except error:
        return True
    return False


def test_the_number_of_layers_may_be_a_default():
    config = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "layer_types": [FULL] * 6}}
    with pytest.raises(CheckpointError, match="names 6 layers, num_hidden_layers is 26"):
        describe(config)
