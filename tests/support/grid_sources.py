"""Checkpoints that conversions start from: every format, option and kind of module, each with what it must answer.

Cells of tests/support/matrix.py, outputs of ``quantize``, and what neither has: quantized embeddings and LM heads,
layouts that the plugin only sizes, transforms, names of other tools.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.support.engines import Answer
from tests.support.matrix import CELLS, Cell
from tests.support.oracle import Oracle, input_ranges
from tests.support.quantized_checkpoints import Written, quantize_weight, write_checkpoint, write_folder
from tests.support.recipes import (
    STATIC_FP8,
    TOKEN_FP8,
    TOKEN_INT8,
    Recipe,
    awq,
    compressed_tensors,
    fp8,
    gptq,
    mixture,
    packed,
)
from tests.support.tiny_models import TinyModel, tiny_model
from vllm_quant_kernels.scheme import E5M2, PER_TENSOR
from vllm_quant_plugin.checkpoint import read_checkpoint
from vllm_quant_plugin.formats import get_format
from vllm_quant_plugin.formats.compressed_tensors import PACK_QUANTIZED
from vllm_quant_plugin.formats.registry import stored_model, stored_scheme

Expected = Callable[[list[list[int]]], Answer]


@dataclass(frozen=True)
class Made:
    """A checkpoint and its reference.

    Attributes:
        expected: the reference's answer, given the tokens of the continuations.
        rounds: activations are rounded to 8 bits, so that single positions may differ more.
        options: engine arguments that it needs.
    """

    folder: Path
    expected: Expected | None
    rounds: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """A named way to make a checkpoint in a folder."""

    name: str
    make: Callable[[Path], Made]


def _made(model: TinyModel, written: Written, **options: Any) -> Made:
    """The cache in 16 bits: FP8 caches are the business of tests/methods/test_engine_options.py."""
    oracle = Oracle(model, replace(written, kv_scales=None))
    rounds = any(scheme.activation is not None for scheme in written.schemes.values())
    return Made(written.folder, oracle.answer, rounds, options)


def _cell(cell: Cell) -> Source:
    def make(folder: Path) -> Made:
        model = tiny_model(cell.architecture)
        return _made(model, write_checkpoint(folder, model, cell.recipe, input_ranges=input_ranges(model, apart=False)))

    return Source(cell.name, make)


def _recipe(
    name: str, recipe: Recipe, architecture: str = "llama", change: Callable[[Path], None] | None = None, **options: Any
) -> Source:
    def make(folder: Path) -> Made:
        model = tiny_model(architecture)
        packed_words = recipe.scheme is not None and recipe.scheme.storage == PACK_QUANTIZED
        halved = replace(recipe, half_scales=packed_words)  # else no other format holds them
        written = write_checkpoint(folder, model, halved, input_ranges=input_ranges(model, apart=False))
        if change is not None:
            change(written.folder)
        return _made(model, written, **options)

    return Source(name, make)


def _rename(**leaves: str) -> Callable[[Path], None]:
    """Tensors by other last components."""

    def change(folder: Path) -> None:
        renamed = {}
        for name, tensor in load_file(folder / "model.safetensors").items():
            stem, _, leaf = name.rpartition(".")
            renamed[f"{stem}.{leaves.get(leaf, leaf)}"] = tensor
        save_file(renamed, folder / "model.safetensors")

    return change


def _beside(file: str, side: dict[str, Any]) -> Callable[[Path], None]:
    """The quantization config in ``file`` alone."""

    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        del config["quantization_config"]
        (folder / "config.json").write_text(json.dumps(config))
        (folder / file).write_text(json.dumps(side))

    return change


def _with_lm_head(recipe: Recipe) -> Recipe:
    """compressed-tensors that quantizes the LM head as well."""
    return replace(recipe, config={**(recipe.config or {}), "ignore": []}, lm_head=recipe.scheme)


def _with_embedding(recipe: Recipe, **config: Any) -> Callable[[Path], Made]:
    """The recipe's scheme for the embeddings too."""

    def make(folder: Path) -> Made:
        model = tiny_model("llama")
        written = write_checkpoint(folder, model, replace(recipe, config={**(recipe.config or {}), **config}))
        tensors = load_file(written.folder / "model.safetensors")
        assert recipe.scheme is not None
        weight = quantize_weight(tensors.pop("model.embed_tokens.weight"), recipe.scheme)
        for leaf, tensor in get_format(recipe.scheme).pack(weight, recipe.scheme).items():
            tensors[f"model.embed_tokens.{leaf}"] = tensor
        save_file(tensors, written.folder / "model.safetensors")
        dense = {**written.dense, "model.embed_tokens.weight": weight.dequantize(torch.float32)}
        return _made(model, replace(written, dense=dense))

    return make


def _transformed(recipe: Recipe | None) -> Callable[[Path], Made]:
    """An online Hadamard transform in front of down_proj."""

    def make(folder: Path) -> Made:
        from tests.support.transformed import group, write_transformed

        down = "re:.*down_proj$"
        groups = {"R4": group("hadamard", ("input", False, down), ("weight_input", True, down))}
        written = write_transformed(folder, tiny_model("llama"), groups, recipe)
        return Made(written.folder, written.answer)

    return make


def _sized_only(
    config: dict[str, Any], store: Callable[[torch.Tensor], dict[str, torch.Tensor]]
) -> Callable[..., Made]:
    """A layout that the plugin does not read; nothing here serves it, so it has no reference."""

    def make(folder: Path) -> Made:
        model = tiny_model("llama")
        tensors = dict(model.tensors)
        for name in model.linears:
            tensors |= {f"{name}.{leaf}": tensor for leaf, tensor in store(tensors.pop(f"{name}.weight")).items()}
        written = write_folder(folder / "quantized", model.config | {"quantization_config": config}, tensors)
        return Made(written, None)

    return make


def _nvfp4(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    n, k = weight.shape
    return {
        "weight_packed": torch.zeros(n, k // 2, dtype=torch.uint8),
        "weight_scale": torch.ones(n, k // 16).to(torch.float8_e4m3fn),
        "weight_global_scale": torch.ones(1),
    }


_NVFP4 = {
    "quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "ignore": ["lm_head"],
    "config_groups": {"group_0": {"targets": ["Linear"], "format": "nvfp4-pack-quantized", "weights": {
        "num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True}}},
}  # fmt: skip
_MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8", "exclude_modules": ["lm_head"]}
_CHANNEL_FP8 = compressed_tensors("float-quantized", activation=TOKEN_FP8)
_E5M2 = replace(fp8().scheme, value=E5M2, activation=replace(fp8().scheme.activation, value=E5M2))  # type: ignore[union-attr,arg-type]
_W4A8 = packed(4, 64)
_W4A8_SCHEME = replace(_W4A8.scheme, activation=TOKEN_INT8)  # type: ignore[type-var]


def _w4a8_config() -> dict[str, Any]:
    config = json.loads(json.dumps(_W4A8.config))
    config["config_groups"]["group_0"]["input_activations"] = {
        "num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True,
    }  # fmt: skip
    return config


def _embedding_groups() -> dict[str, Any]:
    config = json.loads(json.dumps(packed(4, 64).config))
    config["config_groups"]["group_0"]["targets"] = ["Linear", "Embedding"]
    return config["config_groups"]


EXTRA = (
    Source("gptq-embedding", _with_embedding(gptq(4, 128))),
    Source("ct-embedding", _with_embedding(packed(4, 64), config_groups=_embedding_groups())),
    _recipe("ct-lm-head-4bit", _with_lm_head(packed(4, 64))),
    _recipe("ct-lm-head-3bit", _with_lm_head(packed(3, 64))),
    _recipe("ct-lm-head-fp8", _with_lm_head(compressed_tensors("float-quantized", activation=TOKEN_FP8))),
    _recipe("ct-lm-head-int8", _with_lm_head(compressed_tensors("int-quantized", activation=TOKEN_INT8))),
    *(_recipe(f"ct-{bits}bit-g64", packed(bits, 64)) for bits in range(2, 9)),
    *(_recipe(f"ct-{bits}bit-g32-asym", packed(bits, 32, False)) for bits in range(2, 9)),
    _recipe("ct-4bit-channel", packed(4, -1), "qwen3"),
    _recipe("ct-8bit-channel-tied", packed(8, -1), "llama-tied"),
    _recipe("ct-3bit-mixtral", packed(3, 64), "mixtral"),
    _recipe("ct-8bit-asym-mixtral", packed(8, 64, False), "mixtral"),
    _recipe("ct-act-order-mixtral", packed(4, 64, act_order=True), "mixtral"),
    _recipe("ct-w4a8", replace(_W4A8, config=_w4a8_config(), scheme=_W4A8_SCHEME)),
    _recipe("ct-int8-w8a16-mixtral", compressed_tensors("int-quantized"), "mixtral"),
    _recipe("ct-int8-w8a8-grouped", compressed_tensors("int-quantized", 64, TOKEN_INT8)),
    _recipe("ct-int8-w8a8-asym-weights", compressed_tensors("int-quantized", activation=TOKEN_INT8, sym=False)),
    _recipe("ct-fp8-w8a16-mixtral", compressed_tensors("float-quantized"), "mixtral"),
    _recipe("ct-fp8-static-mixtral", compressed_tensors("float-quantized", PER_TENSOR, STATIC_FP8), "mixtral"),
    _recipe("ct-fp8-experts-4bit", mixture(_CHANNEL_FP8, 4, 64, r"experts.*"), "mixtral"),
    _recipe("ct-4bit-and-2bit", mixture(packed(4, 64), 2, 64, "down_proj")),
    _recipe("gptq-lm-head-act-order", gptq(4, 64, act_order=True, lm_head=True)),
    _recipe("gptq-3bit-mixtral", gptq(3, 64), "mixtral"),
    _recipe("awq-8bit-mixtral", awq(8, 64), "mixtral"),
    _recipe("fp8-e5m2", replace(fp8(), config={**(fp8().config or {}), "fmt": "e5m2"}, scheme=_E5M2)),
    _recipe("fp8-static-mixtral", fp8(static=True), "mixtral"),
    _recipe("fp8-transformers-names", fp8(static=True),
            change=_rename(weight_scale="weight_scale_inv", input_scale="activation_scale")),
    _recipe("gptq-quantize-config-alone", gptq(3, 128), quantization="vqp_gptq", change=_beside(
        "quantize_config.json", {"bits": 3, "group_size": 128, "desc_act": False, "sym": True})),
    _recipe("awq-quant-config-alone", awq(4, 64), quantization="vqp_awq", change=_beside(
        "quant_config.json", {"zero_point": True, "q_group_size": 64, "w_bit": 4, "version": "GEMM"})),
    Source("transform-16bit", _transformed(None)),
    Source("transform-int8", _transformed(compressed_tensors("int-quantized"))),
    Source("transform-4bit", _transformed(packed(4, 64))),
    Source("modelopt-fp8", _sized_only(_MODELOPT, lambda w: {
        "weight": w.to(torch.float8_e4m3fn), "weight_scale": torch.ones(()), "input_scale": torch.ones(())})),
    Source("bitsandbytes-int8", _sized_only({"quant_method": "bitsandbytes", "load_in_8bit": True},
        lambda w: {"weight": w.to(torch.int8), "SCB": torch.ones(w.shape[0])})),
    Source("ct-nvfp4", _sized_only(_NVFP4, _nvfp4)),
)  # fmt: skip


# (method, options of the recipe); GPTQ and AWQ calibrate on a few tokens.
QUANTIZED: dict[str, tuple[str, dict[str, Any]]] = {
    "quantize-rtn-2bit": ("rtn", {"level": "2bit-32g"}),
    "quantize-rtn-3bit": ("rtn", {"level": "3bit-64g"}),
    "quantize-rtn-4bit-asym": ("rtn", {"level": "4bit-32g-asym"}),
    "quantize-rtn-5bit": ("rtn", {"level": "5bit-64g"}),
    "quantize-rtn-8bit": ("rtn", {"level": "8bit-channel"}),
    "quantize-rtn-kv-cache": ("rtn", {"level": "4bit-64g", "kv_cache": True}),
    "quantize-awq-4bit": ("awq", {"level": "4bit-64g"}),
    "quantize-awq-8bit": ("awq", {"level": "8bit"}),
    "quantize-awq-kv-cache": ("awq", {"level": "4bit-64g", "kv_cache": True}),
    "quantize-gptq-4bit": ("gptq", {"level": "4bit-64g", "act_order": False}),
    "quantize-gptq-3bit-act-order": ("gptq", {"level": "3bit-64g"}),
    "quantize-gptq-8bit-asym": ("gptq", {"level": "8bit-128g-asym", "act_order": False}),
    "quantize-gptq-2bit-act-order": ("gptq", {"level": "2bit-32g", "act_order": True}),
    "quantize-int8-w8a8": ("int8", {}),
    "quantize-int8-w8a16": ("int8", {"level": "W8A16"}),
    "quantize-int8-static": ("int8", {"activations": "static", "smooth": "none"}),
    "quantize-fp8-channel": ("fp8", {"level": "channel"}),
    "quantize-fp8-tensor": ("fp8", {"level": "tensor"}),
    "quantize-fp8-block": ("fp8", {"level": "block"}),
    "quantize-fp8-static": ("fp8", {"level": "tensor", "activations": "static"}),
    "quantize-fp8-kv-cache": ("fp8", {"level": "channel", "kv_cache": True}),
}  # fmt: skip
_CALIBRATED = ("awq", "gptq")


def _quantized(name: str, method: str, options: dict[str, Any]) -> Source:
    def make(folder: Path) -> Made:
        from tests.quantize.conftest import write_small_model
        from vllm_quant_plugin.quantize.api import make_recipe, quantize_model
        from vllm_quant_plugin.quantize.calibration import SHIPPED

        (folder / "model").mkdir(parents=True)
        model = write_small_model(folder / "model")
        text = folder / "text.txt"
        text.write_text(SHIPPED.read_text("utf-8")[:60_000], "utf-8")
        measured = method in _CALIBRATED or options.get("kv_cache") or options.get("activations") == "static"
        data = {"samples": 1, "seq_len": 32, "calibration": str(text)} if measured else {}
        quantize_model(model, folder / "quantized", make_recipe(method, **options, **data))
        return reread(folder / "quantized")

    return Source(name, make)


def reread(folder: Path) -> Made:
    """A Llama checkpoint with the reference that its own tensors mean, as tests/formats check them."""
    from vllm_quant_plugin.quantize.io.shards import read_tensor

    checkpoint = read_checkpoint(folder)
    scheme = stored_model(checkpoint)
    dense: dict[str, torch.Tensor] = {}
    schemes, static = {}, {}
    for name, infos in checkpoint.modules():
        found = stored_scheme(name, infos, scheme)
        tensors = {leaf: read_tensor(checkpoint, f"{name}.{leaf}") for leaf in infos}
        if found is None:
            dense |= {f"{name}.{leaf}": tensor.float() for leaf, tensor in tensors.items()}
            continue
        layout = get_format(found)
        n, k = layout.shape(found, infos)
        schemes[name] = found
        dense[f"{name}.weight"] = layout.unpack(tensors, found, n, k).validate().dequantize(torch.float64)
        static[name] = {leaf: tensors[leaf] for leaf in ("input_scale", "input_zero_point") if leaf in tensors}
    config = {"rope_theta": 10000.0, **checkpoint.config}
    config["rope_theta"] = config.get("rope_parameters", config)["rope_theta"]
    if config.get("tie_word_embeddings") and "lm_head.weight" not in dense:
        dense["lm_head.weight"] = dense["model.embed_tokens.weight"]
    written = Written(folder, folder, dense, schemes, static, None)
    return _made(TinyModel(config, dense, tuple(schemes)), written)


def sources() -> Iterator[Source]:
    """All of them, in a fixed order."""
    yield from (_cell(cell) for cell in CELLS if cell.recipe.config is not None and cell.tp == 1 and not cell.refused)
    yield from EXTRA
    yield from (_quantized(name, *how) for name, how in QUANTIZED.items())


def source_named(name: str) -> Source:
    """Raises KeyError for an unknown name."""
    return {source.name: source for source in sources()}[name]
