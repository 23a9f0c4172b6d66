"""Which scheme a module gets, and which TP sizes its groups allow."""

from dataclasses import replace

import pytest

from vllm_quant_kernels.scheme import E4M3, Int
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.formats.gptq import GPTQ_V2
from vllm_quant_plugin.formats.registry import legal_tp
from vllm_quant_plugin.schemes import ModelScheme, Rule, Storage, StoredScheme

W4 = StoredScheme(Int(4), storage=GPTQ_V2)
W8 = StoredScheme(Int(8), storage=GPTQ_V2)


def test_first_rule_wins_then_default() -> None:
    model = ModelScheme("gptq", W4, (Rule(r".*\.1\.", None), Rule("down_proj", W8, "path")))
    assert model.scheme_for("model.layers.1.down_proj") is None
    assert model.scheme_for("model.layers.2.down_proj") is W8
    assert model.scheme_for("model.layers.2.up_proj") is W4
    assert model.scheme_for("lm_head") is None


@pytest.mark.parametrize(
    ("rule", "name", "expected"),
    [
        (Rule("mlp.gate", None, "path"), "model.layers.0.mlp.gate", True),
        (Rule("mlp.gate", None, "path"), "model.layers.0.mlp.gate_proj", False),
        (Rule("gate", None, "contains"), "model.layers.0.mlp.gate_proj", True),
        (Rule("layers", None), "model.layers.0", False),
        (Rule(".*layers", None), "model.layers.0", True),
        (Rule("Linear", None, "class"), "anything", True),
    ],
)
def test_rule_modes(rule: Rule, name: str, expected: bool) -> None:
    assert rule.matches(name) is expected


def test_fused_parts_must_agree() -> None:
    model = ModelScheme("gptq", W4, (Rule("k_proj", W8, "path"),))
    with pytest.raises(CheckpointError, match=r"different schemes.*k_proj: INT8"):
        model.scheme_for_fused("model.layers.0.self_attn.qkv_proj", ["q_proj", "k_proj", "v_proj"])
    assert model.scheme_for_fused("model.layers.0.mlp.gate_up_proj", ["gate_proj", "up_proj"]) is W4


@pytest.mark.parametrize(
    ("scheme", "k", "legal"),
    [
        (StoredScheme(Int(4), 128, storage=GPTQ_V2), 11008, [1, 2]),
        (StoredScheme(Int(4), 32, storage=GPTQ_V2), 11008, [1, 2, 4, 8]),
        (StoredScheme(Int(4), -1, storage=GPTQ_V2), 11008, [1, 2, 4, 8, 16]),
        (StoredScheme(Int(4), 128, act_order=True, storage=GPTQ_V2), 11008, [1, 2, 4, 8, 16]),
        (StoredScheme(E4M3, 128, block=(128, 128), storage=Storage("fp8")), 7168, [1, 2, 4, 8]),
        (StoredScheme(Int(4), 128, storage=GPTQ_V2), 100, [1]),
    ],
)
def test_legal_tp(scheme: StoredScheme, k: int, legal: list[int]) -> None:
    assert legal_tp(scheme, k, (1, 2, 4, 8, 16)) == legal


def test_a_model_is_named_by_what_its_config_names() -> None:
    four, eight = (
        StoredScheme(Int(4), 128, storage=GPTQ_V2),
        StoredScheme(Int(8), 32, storage=GPTQ_V2),
    )
    assert ModelScheme("gptq", four).describe() == four.describe()
    assert ModelScheme("gptq", four, (Rule("lm_head", None, "contains"),)).describe() == four.describe()
    assert ModelScheme("gptq", None).describe() == "none"
    assert ModelScheme("gptq", four, (Rule("mlp", eight, "contains"),)).describe() == "mixed 4/8-bit"
    finer = replace(four, group_size=32)
    assert ModelScheme("gptq", four, (Rule("mlp", finer, "contains"),)).describe() == f"{four.describe()} and others"
