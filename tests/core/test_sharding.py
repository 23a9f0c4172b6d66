"""Legal tensor-parallel sizes for ``inspect``, the dry run and ``plan``: head counts, vocabulary and groups."""

from pathlib import Path

from vllm_quant_kernels.scheme import Int
from vllm_quant_plugin.architecture.sharding import tp_refusals
from vllm_quant_plugin.checkpoint import Checkpoint
from vllm_quant_plugin.formats.gptq import GPTQ_V2
from vllm_quant_plugin.schemes import ModelScheme, StoredScheme

SMALL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "intermediate_size": 768,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000,
}  # fmt: skip


def test_heads_limit_an_unquantized_model():
    found = tp_refusals(Checkpoint(Path("x"), SMALL, {}), None, None)
    assert [tp for tp, why in found.items() if not why] == [1, 2, 4]
    assert found[8] == "4 attention heads do not divide by 8"


def test_groups_limit_what_a_run_will_write():
    served = ModelScheme("gptq", StoredScheme(Int(4), 128, storage=GPTQ_V2))
    found = tp_refusals(Checkpoint(Path("x"), SMALL, {}), None, served)
    assert [tp for tp, why in found.items() if not why] == [1, 2]
    assert "group 128" in found[4]
