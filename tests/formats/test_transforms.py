"""``transform_config``: what it means, what of it vLLM's own method does, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.formats import Host, parse_quantization_config, plugin_method, why_in_tree_rejects
from vllm_quant_plugin.transforms import Transform, uncancelled

WEIGHTS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
TOKEN = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
INPUT = {"targets": ["re:.*down_proj$"], "location": "input", "inverse": False, "ignore": []}
DOWN = "model.layers.3.mlp.down_proj"


def config(layout: str = "int-quantized", bits: int = 8, **groups: Any) -> dict[str, Any]:
    weights = {**WEIGHTS, "num_bits": bits}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": TOKEN if bits == 8 else None}
    return {
        "quant_method": "compressed-tensors", "format": layout, "ignore": ["lm_head"],
        "config_groups": {"group_0": group}, "transform_config": {"config_groups": groups},
    }  # fmt: skip


def rotation(kind: str = "hadamard", **more: Any) -> dict[str, Any]:
    return {"type": kind, "apply": [INPUT], **more}


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        (rotation(), Transform("R", "hadamard")),
        # Written by 0.12 and by every other release.
        (rotation(block_size=64, head_dim=None), Transform("R", "hadamard", 64)),
        (rotation(head_dim=64, precision="torch.float64"), Transform("R", "hadamard", 64, double=True)),
        (rotation("random-hadamard", randomize=True), Transform("R", "random-hadamard", permuted=True)),
        (rotation("random-matrix", randomize=True, requires_grad=True), Transform("R", "random-matrix")),
    ],
)
def test_what_it_means(group: dict[str, Any], expected: Transform) -> None:
    model = parse_quantization_config(config(R=group))
    (found,) = model.online_at(DOWN)
    assert found.transform == expected
    assert not model.online_at("model.layers.3.mlp.up_proj")


def test_ignore_is_per_module_and_weights_are_folded_in() -> None:
    both = [{**INPUT, "targets": "Linear", "ignore": ["re:.*up_proj", DOWN]}, {**INPUT, "location": "weight_input"}]
    model = parse_quantization_config(config(R=rotation(apply=both)))
    assert model.online_at("model.layers.3.mlp.gate_proj")
    assert not model.online_at(DOWN)
    assert not model.online_at("model.layers.3.mlp.up_proj")
    assert len(model.transforms) == 2


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (rotation("fwht"), "config_groups.R.type 'fwht' is not supported"),
        (rotation(invented=3), "config_groups.R.invented is not known"),
        (rotation(head_dim=64, block_size=32), r"head_dim and block_size are \[32, 64\]"),
        (rotation(head_dim="64"), "head_dim must be an integer"),
        (rotation(precision="int8"), "precision 'int8' is not supported"),
        (rotation(apply=[{**INPUT, "location": "v_cache"}]), "location 'v_cache' is not supported"),
        (rotation(apply=[{**INPUT, "scale": 2}]), r"apply\[0\].scale is not known"),
        (rotation(apply=[{**INPUT, "targets": ["re:("]}]), "no regular expression"),
        (rotation(apply={"a": 1}), "apply must be a list"),
    ],
)
def test_refused(group: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        parse_quantization_config(config(R=group))
    assert error.value.hint
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("group", "reason"),
    [
        (rotation(), None),
        (rotation("random-hadamard", head_dim=128), None),
        (rotation("random-matrix"), "random-matrix"),
        (rotation(randomize=True), "permutation"),
        (rotation(apply=[{**INPUT, "targets": ["lm_head"]}]), "other than linear layers"),
        (rotation(apply=[{**INPUT, "location": "k_cache"}]), "other than linear layers"),
        (rotation(apply=[INPUT, INPUT]), "several transforms"),
        (rotation(block_size=None), "block_size"),
        (rotation(apply=[{**INPUT, "location": "weight_input"}]), None),
    ],
)
def test_what_vllm_itself_does(group: dict[str, Any], reason: str | None) -> None:
    model = parse_quantization_config(config(R=group))
    found = why_in_tree_rejects(model, Host("cuda"))
    assert (found is None) if reason is None else (found is not None and reason in found)
    assert (why_in_tree_rejects(model, Host("cpu", frozenset({"avx512f", "avx512_vnni"}))) is None) is (
        not model.online
    )


@pytest.mark.parametrize(
    ("made", "method"),
    [
        (config(R=rotation()), "vqp_int8"),
        (config("pack-quantized", 4, R=rotation()), "vqp_compressed_tensors"),
        (config("pack-quantized", 4), "vqp_compressed_tensors"),  # by flag: vLLM serves it
        ({**config(R=rotation()), "config_groups": {}}, "vqp_compressed_tensors"),
    ],
)
def test_who_takes_it(made: dict[str, Any], method: str | None) -> None:
    assert plugin_method(parse_quantization_config(made)) == method


def test_queries_and_keys_that_are_rotated_alike_cancel() -> None:
    pair = [{**INPUT, "targets": ["re:.*self_attn$"], "location": at} for at in ("q_attn", "k_cache")]
    model = parse_quantization_config(config(R=rotation(apply=pair, head_dim=64)))
    assert len(model.online) == 2
    assert not uncancelled(model.online, quantized_cache=False)
    assert len(uncancelled(model.online, quantized_cache=True)) == 2
    one = parse_quantization_config(config(R=rotation(apply=pair[:1], head_dim=64)))
    assert len(uncancelled(one.online, quantized_cache=False)) == 1
    matrix = parse_quantization_config(config(R=rotation("random-matrix", apply=pair, head_dim=64)))
    assert len(uncancelled(matrix.online, quantized_cache=False)) == 2
