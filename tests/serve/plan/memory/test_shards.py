"""Which tensor-parallel cuts a quantized model allows, for vLLM's own methods and for this plugin's."""

import pytest

from vllm_quant_kernels.scheme import E4M3, Int
from vllm_quant_plugin.architecture.arch import Layer, ModelArch, Parameter
from vllm_quant_plugin.architecture.placement import Placement
from vllm_quant_plugin.formats.gptq import GPTQ_V2
from vllm_quant_plugin.schemes import ModelScheme, Rule, Storage, StoredScheme
from vllm_quant_serve.plan.memory.weights import WeightModel


def model(scheme, *shapes, role="row", plugin=""):
    """One layer per shape, each with one matrix of ``role``."""
    leaf = "o_proj" if role == "row" else "q_proj"
    layers = tuple(
        Layer((Parameter(f"model.layers.{i}.self_attn.{leaf}.weight", shape, role, linear=True),))
        for i, shape in enumerate(shapes)
    )
    arch = ModelArch("llama", "LlamaForCausalLM", 64, 64, 64, "bfloat16", layers, (), ())
    return WeightModel(arch, scheme, 2, plugin)


def refusals(weights, tp):
    return list(weights.refusals(Placement(tp)))


@pytest.mark.parametrize(
    ("scheme", "shape", "role", "tp", "reason"),
    [
        (StoredScheme(Int(3), -1, storage=GPTQ_V2), (64, 80), "row", 2, "o_proj 80/2 = 40 does not fill 32-bit words"),
        (
            StoredScheme(Int(4), 32, storage=Storage("awq")),
            (24, 64),
            "column",
            2,
            "q_proj 24/2 = 12 does not fill 32-bit words",
        ),
        (
            StoredScheme(E4M3, 128, block=(128, 128), storage=Storage("fp8")),
            (192, 256),
            "column",
            2,
            "is not a multiple of block",
        ),
    ],
)
def test_only_vllms_own_methods_need_whole_words_and_blocks(scheme, shape, role, tp, reason):
    scheme = ModelScheme("any", scheme)
    (refusal,) = refusals(model(scheme, shape, role=role), tp)
    assert reason in refusal
    assert refusals(model(scheme, shape, role=role, plugin="cpu"), tp) == []
    assert refusals(model(scheme, shape, role=role, plugin="cuda"), tp) == []


@pytest.mark.parametrize("plugin", ["", "cpu", "cuda"])
def test_nobody_cuts_a_group(plugin):
    weights = model(ModelScheme("gptq", StoredScheme(Int(4), 128, storage=GPTQ_V2)), (64, 384), plugin=plugin)
    (refusal,) = refusals(weights, 2)
    assert refusal == "o_proj 384/2 = 192 is not a multiple of group 128; only TP 1 works"


def test_a_first_layer_in_16_bits_hides_no_other():
    quantized = StoredScheme(Int(4), 128, storage=GPTQ_V2)
    weights = model(ModelScheme("gptq", quantized, (Rule("layers.0", None, "path"),)), (64, 384), (64, 384))
    assert len(refusals(weights, 2)) == 1


def test_layers_of_the_same_shape_are_judged_by_their_own_schemes():
    """Mixed precision: the first layer's groups divide, the second's do not."""
    fine, coarse = StoredScheme(Int(4), 32, storage=GPTQ_V2), StoredScheme(Int(4), 128, storage=GPTQ_V2)
    weights = model(ModelScheme("gptq", coarse, (Rule("layers.0", fine, "path"),)), *[(64, 384)] * 3)
    (refusal,) = refusals(weights, 2)
    assert "group 128" in refusal
