"""SmoothQuant, static scales and KV-cache scales, on a model with outlier activation channels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.outlier_model import write_outlier_model
from tests.support.simulate import log_probabilities, mean_kl
from vllm_quant_kernels.scheme import ActivationScheme, Int
from vllm_quant_plugin.checkpoint import read_checkpoint
from vllm_quant_plugin.formats import parse_quantization_config
from vllm_quant_plugin.formats.fused import siblings
from vllm_quant_plugin.quantize.algorithms.int8 import choose_scale, gemm_error, smoothing_scale
from vllm_quant_plugin.quantize.api import make_recipe, preflight, quantize_model
from vllm_quant_plugin.quantize.engine.fold import Fold
from vllm_quant_plugin.quantize.engine.statistics import AttentionRanges, Group, InputRange, spaced_rows
from vllm_quant_plugin.quantize.io.shards import read_tensor
from vllm_quant_plugin.quantize.modules import linear_modules
from vllm_quant_plugin.rtn import quantize_int

LAYERS = 2


@pytest.fixture(scope="module")
def data(short_text: str) -> dict:
    """Calibration options."""
    return {"samples": 8, "seq_len": 128, "calibration": short_text}


@pytest.fixture(scope="module")
def outliers(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model with 1 % of its channels 30 times as large."""
    return write_outlier_model(small_model, tmp_path_factory.mktemp("outliers") / "model")


@pytest.fixture(scope="module")
def base(outliers: Path) -> torch.Tensor:
    return log_probabilities(outliers)


@pytest.fixture(scope="module")
def static_plain(outliers: Path, base: torch.Tensor, tmp_path_factory: pytest.TempPathFactory, data: dict) -> float:
    """Mean KL of static INT8 without SmoothQuant."""
    out = tmp_path_factory.mktemp("static") / "out"
    return _made(outliers, out, base, "int8", activations="static", smooth="none", **data)


def _made(source: Path, out: Path, base: torch.Tensor, method: str, **options) -> float:
    """Mean KL of a recipe's result."""
    recipe = make_recipe(method, **options)
    plan = preflight(source, out, recipe)
    report = quantize_model(source, out, recipe)
    assert plan.bytes_after == report.bytes_after
    return mean_kl(base, log_probabilities(source, out))


def test_the_loud_model_is_the_same_function(small_model: Path, base: torch.Tensor) -> None:
    # What is left is the rounding of bfloat16 weights that were divided by 30.
    assert mean_kl(log_probabilities(small_model), base) < 1e-5


def test_smoothquant_recovers_what_loud_channels_cost(
    outliers: Path, base: torch.Tensor, tmp_path: Path, data: dict
) -> None:
    plain = _made(outliers, tmp_path / "plain", base, "int8")
    smooth = _made(outliers, tmp_path / "smooth", base, "int8", smooth="search", **data)
    # At least 80 % is recovered.
    assert smooth < 0.2 * plain


@pytest.mark.parametrize("strength", [0.5, "search"])
def test_static_activations_need_it_more(
    outliers: Path, base: torch.Tensor, tmp_path: Path, static_plain: float, strength: float | str, data: dict
) -> None:
    smooth = _made(outliers, tmp_path / "out", base, "int8", activations="static", smooth=strength, **data)
    assert smooth < 0.2 * static_plain


def test_awq_halves_the_loss_of_rounding_at_3_bits(
    outliers: Path, base: torch.Tensor, tmp_path: Path, data: dict
) -> None:
    rounded = _made(outliers, tmp_path / "rtn", base, "rtn", level="3bit-asym")
    awq = _made(outliers, tmp_path / "awq", base, "awq", level="3bit", **data)
    assert awq < 0.5 * rounded


@pytest.mark.parametrize(("method", "top"), [("int8", 127), ("fp8", 448)])
def test_static_scales_cover_the_inputs(outliers: Path, tmp_path: Path, method: str, top: int, data: dict) -> None:
    recipe = make_recipe(method, activations="static", smooth="none" if method == "int8" else None, **data)
    quantize_model(outliers, tmp_path / "out", recipe)
    made = read_checkpoint(tmp_path / "out")
    scales = {}
    for module in linear_modules(read_checkpoint(outliers)):
        scale = read_tensor(made, f"{module.name}.input_scale")
        assert scale.shape == (1,)
        assert scale.dtype == torch.float32
        scales[module.name] = float(scale)
    for name in scales:
        assert {scales[s] for s in siblings(name)} == {scales[name]}
    # The first norm's output, computed here: the same windows, the embedding and one RMSNorm.
    from vllm_quant_plugin.quantize.calibration import load_windows
    from vllm_quant_plugin.text.windows import load_tokenizer

    tokens = torch.tensor(load_windows(recipe.calibration, load_tokenizer(outliers)).tokens)
    checkpoint = read_checkpoint(outliers)
    x = read_tensor(checkpoint, "model.embed_tokens.weight").float()[tokens]
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + checkpoint.config["rms_norm_eps"])
    x = x * read_tensor(checkpoint, "model.layers.0.input_layernorm.weight").float()
    assert scales["model.layers.0.self_attn.q_proj"] == pytest.approx(float(x.abs().max()) / top, rel=1e-5)
    config = parse_quantization_config(made.quantization_config)
    assert config.scheme_for("model.layers.0.mlp.up_proj") == recipe.scheme


def test_static_fp8_with_cache_scales(outliers: Path, base: torch.Tensor, tmp_path: Path, data: dict) -> None:
    assert _made(outliers, tmp_path / "out", base, "fp8", activations="static", kv_cache=True, **data) < 0.02
    made = read_checkpoint(tmp_path / "out")
    assert parse_quantization_config(made.quantization_config).kv_cache == "fp8"
    for layer in range(LAYERS):
        for which in ("k_scale", "v_scale"):
            scale = read_tensor(made, f"model.layers.{layer}.self_attn.{which}")
            assert scale.shape == (1,)
            assert 1e-4 < float(scale) < 1


def test_attention_ranges_see_keys_and_values() -> None:
    q, k, v = (torch.randn(1, 2, 5, 8) for _ in range(3))
    with AttentionRanges() as found:
        torch.nn.functional.scaled_dot_product_attention(q, k, v)
        torch.nn.functional.scaled_dot_product_attention(query=q, key=2 * k, value=v)
    assert (found.key, found.value) == (float(2 * k.abs().max()), float(v.abs().max()))


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_smoothing_scale_is_the_papers(strength: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(8, 16, generator=generator) for _ in range(2)]
    peak = torch.rand(16, generator=generator) * 30 + 0.1
    peak[3] = 0
    scale = smoothing_scale(weights, peak, strength)
    weight_peak = torch.cat(weights).abs().amax(0)
    expected = peak.double() ** strength / weight_peak.double() ** (1 - strength)
    ratio = scale.double() / expected
    alive = peak > 0
    # The same up to one factor for all channels, which rounding does not see.
    assert torch.allclose(ratio[alive], ratio[alive][0].expand(15), rtol=1e-5)
    assert float(scale[3]) == 1


def test_search_never_loses_to_no_smoothing() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(24, 32, generator=generator)]
    x = torch.randn(200, 32, generator=generator)
    x[:, 5] *= 40
    found = InputRange(x.abs().amax(0), x, 200)
    activation = ActivationScheme(Int(8))
    group = Group(["a"])

    def rounded(weight: torch.Tensor) -> torch.Tensor:
        return quantize_int(weight, 8).dequantize()

    scale = choose_scale(weights, found, Fold(group, "norm", True), "search", activation, rounded)
    assert scale is not None
    plain = gemm_error(weights, found, torch.ones(32), activation, rounded)
    # Independently: round both sides in float64.
    s, w = scale.double(), weights[0].double()
    xs, ws = x.double() / s, w * s
    xq = (xs / (xs.abs().amax(-1, keepdim=True) / 127)).round() * (xs.abs().amax(-1, keepdim=True) / 127)
    wq = (ws / (ws.abs().amax(-1, keepdim=True) / 127)).round() * (ws.abs().amax(-1, keepdim=True) / 127)
    direct = float((xq @ wq.T - x.double() @ w.T).square().sum())
    assert gemm_error(weights, found, scale, activation, rounded) == pytest.approx(direct, rel=0.02)
    assert direct < 0.2 * plain


def test_spaced_rows() -> None:
    x = torch.arange(10.0)[:, None]
    assert spaced_rows(x, 3).flatten().tolist() == [0, 3, 6]
    assert spaced_rows(x, 20).shape == (10, 1)


@pytest.mark.engine
def test_vllm_scores_static_int8_as_simulated(outliers: Path, tmp_path: Path, data: dict) -> None:
    """Perplexity through vLLM is that of the simulation: scales are read and used as they were meant."""
    from vllm_quant_plugin.evaluate.api import evaluate_model
    from vllm_quant_plugin.text.windows import HELD_OUT

    quantize_model(outliers, tmp_path / "out", make_recipe("int8", activations="static", **data))
    found = evaluate_model(
        tmp_path / "out", texts=[HELD_OUT[0]], windows=8, window_len=128, dtype="float32", quantization="vqp_int8"
    )
    from vllm_quant_plugin.text.windows import load_tokenizer, read_windows

    logits = log_probabilities(outliers, tmp_path / "out", windows=8)
    tokens = torch.tensor(read_windows(HELD_OUT[0], load_tokenizer(outliers), 128, 8))
    scored = logits[:, :-1].gather(-1, tokens[:, 1:, None])
    # Activations that lie between two steps may round either way; over a thousand tokens that is lost in the mean.
    assert found.texts[0].perplexity == pytest.approx(float((-scored.mean()).exp()), rel=2e-3)
