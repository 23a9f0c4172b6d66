"""A recipe file becomes a scheme per module, or one line that says what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_quant_plugin.checkpoint import read_checkpoint
from vllm_quant_plugin.errors import UsageError
from vllm_quant_plugin.formats import parse_quantization_config
from vllm_quant_plugin.quantize.api import Recipe, make_recipe
from vllm_quant_plugin.quantize.io.config_writer import config_for
from vllm_quant_plugin.quantize.mixed.recipe_file import apply_lines, pattern_regex, read_recipe_file
from vllm_quant_plugin.quantize.modules import check_input, check_schemes
from vllm_quant_plugin.text.windows import BUNDLED

ISSUE = """
method: gptq
modules:
  embed_tokens: 16
  layers.0: 8
  layers.1-6: 4
  layers.7.self_attn: {bits: 3, group_size: 64, sym: false}
  layers.7.mlp: 16
  lm_head: 16
"""


def _recipe(text: str, folder: Path, method: str | None = None) -> Recipe:
    (folder / "r.yaml").write_text(text)
    named, lines = read_recipe_file(folder / "r.yaml")
    checkpoint = read_checkpoint(BUNDLED)
    return apply_lines(make_recipe(method or named or "rtn"), lines, checkpoint, check_input(checkpoint))


@pytest.mark.parametrize("method", ["gptq", "rtn", "awq"])
def test_each_module_gets_its_bits_and_config_json_says_so(method: str, tmp_path: Path) -> None:
    recipe = _recipe(ISSUE, tmp_path, method)
    checkpoint = read_checkpoint(BUNDLED)
    modules = check_schemes(check_input(checkpoint), recipe.scheme_for)
    model = parse_quantization_config(config_for(recipe, checkpoint, modules, "test:1"))
    for module in check_input(checkpoint):
        layer = int(module.name.split(".")[2])
        scheme = model.scheme_for(module.name)
        assert scheme == recipe.scheme_for(module.name)
        if layer == 7 and ".mlp." in module.name:
            assert scheme is None
        else:
            assert scheme is not None
            expected = {0: (8, 128), 7: (3, 64)}.get(layer, (4, 128))
            assert (scheme.bits, scheme.group_size) == expected, module.name
            assert scheme.symmetric == (method != "awq" and layer != 7)
    # The names under which vLLM asks for the fused layers.
    for layer, bits in ((0, 8), (3, 4), (7, 3)):
        stem = f"model.layers.{layer}.self_attn"
        fused = model.scheme_for_fused(f"{stem}.qkv_proj", ["q_proj", "k_proj", "v_proj"])
        assert fused is not None
        assert fused.bits == bits
        if method == "gptq":
            assert model.scheme_for(f"{stem}.qkv_proj") == fused
    assert model.scheme_for("lm_head") is None
    assert Recipe.from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("layers.1-3", "model.layers.2.mlp.up_proj", True),
        ("layers.1-3", "model.layers.12.mlp.up_proj", False),
        ("layers.1", "model.layers.12.mlp.up_proj", False),
        ("mlp", "model.layers.0.mlp.up_proj", True),
        ("ml", "model.layers.0.mlp.up_proj", False),
        ("*_proj", "model.layers.0.mlp.up_proj", True),
        ("layers.*.mlp", "model.layers.0.mlp.up_proj", True),
        ("model.layers.0.mlp.up_proj", "model.layers.0.mlp.up_proj", True),
    ],
)
def test_pattern(pattern: str, name: str, matches: bool) -> None:
    assert bool(pattern_regex(pattern).search(name)) == matches


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- 1", "mapping"),
        ("modules: {}", "no patterns"),
        ("a: [", "not readable"),
        ("modules: {mlp: 4}\nbits: 3", "'bits' is not known"),
        ("mlp: 4\nblah: 4", "'blah' matches no module"),
        ("mlp: 1", "cannot store 1 bits"),
        ("mlp: true", "not understood"),
        ("mlp: {bits: 4, size: 3}", "not understood"),
        ("mlp: {bits: 4, group_size: 0}", "group size 0"),
        ("mlp: {bits: 4, act_order: true}", "no act-order"),
        ("layers.3-1: 4", "empty"),
        ("embed_tokens: 8", "stay in 16 bits"),
        ("q_proj: 8\nself_attn: 4", "different schemes"),
        ("layers: 16", "every module in 16 bits"),
    ],
)
def test_what_cannot_be_is_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        _recipe(text, tmp_path)
    assert caught.value.hint


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not readable"):
        read_recipe_file(tmp_path / "none.yaml")
