"""Every combination of format, options, architecture and ranks that is proven: one cell each.

tests/methods/test_matrix.py runs the cells; scripts/support_table.py prints them into the README.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from tests.support.recipes import (
    STATIC_FP8,
    STATIC_INT8,
    STATIC_INT8_ASYM,
    TOKEN_FP8,
    TOKEN_INT8,
    TOKEN_INT8_ASYM,
    Recipe,
    awq,
    compressed_tensors,
    fp8,
    gptq,
    gptq_scheme,
    mixture,
    online_fp8,
    online_int8,
    packed,
    sparse,
)
from tests.support.tiny_models import tiny_model
from vllm_quant_kernels.scheme import PER_TENSOR
from vllm_quant_plugin.formats import Host, parse_quantization_config
from vllm_quant_plugin.formats.verdict import Verdict, judge, named_parts

AVX512 = Host("cpu", frozenset({"avx512f", "avx512_vnni"}))
CUDA = Host("cuda")


@functools.cache
def _shapes(architecture: str) -> dict[str, tuple[int, int]]:
    """(N, K) of every matrix that a recipe may quantize; without the LM head where it is the embedding."""
    model = tiny_model(architecture)
    weights = {name: model.tensors.get(f"{name}.weight") for name in (*model.linears, "lm_head")}
    return {name: (weight.shape[0], weight.shape[1]) for name, weight in weights.items() if weight is not None}


@dataclass(frozen=True)
class Cell:
    """One proven (or refused) combination.

    Attributes:
        name: the test's id.
        family: AWQ, GPTQ, FP8, INT8 or CT (compressed-tensors with packed integers, alone or mixed).
        method: the name registered with vLLM.
        variant: what is particular, for the table.
        recipe: the checkpoint.
        architecture: one of ``tiny_models.ARCHITECTURES``.
        tp: tensor-parallel ranks, real worker processes when more than one.
        refused: what the error message must contain, for combinations that are turned down.
    """

    name: str
    family: str
    method: str
    variant: str
    recipe: Recipe
    architecture: str = "llama"
    tp: int = 1
    refused: str | None = None

    def engine_options(self) -> dict[str, Any]:
        """Engine arguments that give the cell's checkpoint to its method."""
        chosen: dict[str, Any] = {"quantization": self.method}
        if self.recipe.online_options:
            config = {"quant_method": self.method, **self.recipe.online_options}
            chosen["hf_overrides"] = {"quantization_config": config}
        return chosen

    def in_tree_rejects(self, host: Host) -> str | None:
        """Why in-tree vLLM does not serve this checkpoint on ``host``, None where it does."""
        if self.recipe.config is None:
            return f"online {self.family} for linear layers"
        return self.verdict(host).in_tree

    def verdict(self, host: Host) -> Verdict:
        """Who serves the checkpoint on ``host``, as its headers would tell. Not for online quantization."""
        shapes = _shapes(self.architecture)
        schemes = {name: scheme for name in shapes if (scheme := self.recipe.scheme_of(name)) is not None}
        parts = named_parts((name, scheme, *shapes[name]) for name, scheme in schemes.items())
        return judge(parse_quantization_config(self.recipe.config or {}), host, parts)


def _awq(name: str, variant: str, recipe: Recipe, architecture: str = "llama", **more: object) -> Cell:
    return Cell(f"awq-{name}", "AWQ", "vqp_awq", variant, recipe, architecture, **more)  # type: ignore[arg-type]


def _gptq(name: str, variant: str, recipe: Recipe, architecture: str = "llama", **more: object) -> Cell:
    return Cell(f"gptq-{name}", "GPTQ", "vqp_gptq", variant, recipe, architecture, **more)  # type: ignore[arg-type]


def _fp8(name: str, variant: str, recipe: Recipe, architecture: str = "llama", **more: object) -> Cell:
    return Cell(f"fp8-{name}", "FP8", "vqp_fp8", variant, recipe, architecture, **more)  # type: ignore[arg-type]


def _int8(name: str, variant: str, recipe: Recipe, architecture: str = "llama", **more: object) -> Cell:
    method = str(more.pop("method", "vqp_int8"))
    return Cell(f"int8-{name}", "INT8", method, variant, recipe, architecture, **more)  # type: ignore[arg-type]


AWQ = (
    _awq("4bit-g128", "4-bit, group 128, zero points", awq(4, 128)),
    _awq("4bit-g64-qwen2", "4-bit, group 64, zero points", awq(4, 64), "qwen2"),
    _awq("4bit-g32-qwen3", "4-bit, group 32, zero points", awq(4, 32), "qwen3"),
    _awq("4bit-channel-tied", "4-bit, per channel, zero points", awq(4, -1), "llama-tied"),
    _awq("4bit-g128-nozero", "4-bit, group 128, no zero points", awq(4, 128, False)),
    _awq("2bit-g64", "2-bit, group 64, zero points", awq(2, 64)),
    _awq("2bit-g32-nozero", "2-bit, group 32, no zero points", awq(2, 32, False), "qwen2"),
    _awq("8bit-g128", "8-bit, group 128, zero points", awq(8, 128)),
    _awq("8bit-channel-nozero", "8-bit, per channel, no zero points", awq(8, -1, False), "qwen3"),
    _awq(
        "4bit-not-converted",
        "4-bit, group 64, `modules_to_not_convert`",
        awq(4, 64, modules_to_not_convert=["layers.0.mlp", "o_proj"]),
    ),
    _awq("4bit-g64-mixtral", "4-bit, group 64, zero points", awq(4, 64), "mixtral"),
    _awq("4bit-g64-tp2", "4-bit, group 64, zero points", awq(4, 64), tp=2),
    _awq("4bit-g64-mixtral-tp2", "4-bit, group 64, zero points", awq(4, 64), "mixtral", tp=2),
    _awq("3bit", "3-bit (does not fill the layout's 32-bit words)", awq(3, 128), refused="AWQ with 3 bits"),
)

GPTQ = (
    _gptq("v1-4bit-g128", "4-bit, group 128, symmetric, v1 zeros", gptq(4, 128)),
    _gptq("v2-4bit-g64-qwen2", "4-bit, group 64, symmetric, v2 zeros", gptq(4, 64, v2=True), "qwen2"),
    _gptq("v1-4bit-channel", "4-bit, per channel, symmetric, v1 zeros", gptq(4, -1), "qwen3"),
    _gptq("v1-4bit-g16", "4-bit, group 16, symmetric, v1 zeros", gptq(4, 16)),
    _gptq("v1-4bit-g256-asym", "4-bit, group 256, asymmetric, v1 zeros", gptq(4, 256, False)),
    _gptq("v2-4bit-g32-asym", "4-bit, group 32, asymmetric, v2 zeros", gptq(4, 32, False, v2=True)),
    _gptq("v1-2bit-g64", "2-bit, group 64, symmetric, v1 zeros", gptq(2, 64)),
    _gptq("v2-2bit-g16-asym", "2-bit, group 16, asymmetric, v2 zeros", gptq(2, 16, False, v2=True)),
    _gptq("v1-2bit-g32-asym", "2-bit, group 32, asymmetric, v1 zeros", gptq(2, 32, False), "qwen2"),
    _gptq("v1-3bit-g128", "3-bit, group 128, symmetric, v1 zeros", gptq(3, 128)),
    _gptq("v2-3bit-g64-asym", "3-bit, group 64, asymmetric, v2 zeros", gptq(3, 64, False, v2=True)),
    _gptq("v1-3bit-g256-asym", "3-bit, group 256, asymmetric, v1 zeros", gptq(3, 256, False), "qwen3"),
    _gptq("v1-8bit-g32", "8-bit, group 32, symmetric, v1 zeros", gptq(8, 32)),
    _gptq("v2-8bit-channel-asym", "8-bit, per channel, asymmetric, v2 zeros", gptq(8, -1, False, v2=True)),
    _gptq("v1-8bit-g128-asym", "8-bit, group 128, asymmetric, v1 zeros", gptq(8, 128, False), "llama-tied"),
    _gptq("act-order-4bit-g64", "4-bit, group 64, symmetric, act-order", gptq(4, 64, act_order=True)),
    _gptq("act-order-3bit-g32-asym", "3-bit, group 32, asymmetric, act-order", gptq(3, 32, False, True), "qwen2"),
    _gptq("act-order-4bit-channel", "4-bit, per channel, symmetric, act-order", gptq(4, -1, act_order=True)),
    _gptq(
        "act-order-apart",
        "4-bit, group 128, act-order, `g_idx` different in q, k, v and in gate, up",
        gptq(4, 128, act_order=True, separate_g_idx=True),
    ),
    _gptq(
        "act-order-apart-tp2",
        "4-bit, group 128, asymmetric, act-order, `g_idx` different in q, k, v and in gate, up",
        gptq(4, 128, False, True, separate_g_idx=True),
        tp=2,
    ),
    _gptq(
        "dynamic",
        "4-bit, group 128, `dynamic`: down_proj 8-bit group 32 asymmetric, layer 1's attention in 16 bits",
        gptq(
            4,
            128,
            overrides=((r"down_proj", gptq_scheme(8, 32, False)), (r"layers\.1\.self_attn", None)),
            dynamic={
                r"+:.*\.down_proj$": {"bits": 8, "group_size": 32, "sym": False},
                r"-:.*layers\.1\.self_attn.*": {},
            },
        ),
    ),
    _gptq("lm-head", "4-bit, group 128, quantized `lm_head`", gptq(4, 128, lm_head=True)),
    _gptq("lm-head-3bit-act-order", "3-bit, group 64, act-order, quantized `lm_head`",
          gptq(3, 64, False, True, lm_head=True), "qwen3"),
    _gptq("lm-head-tied", "4-bit, group 128, `lm_head: true` with tied embeddings",
          gptq(4, 128, lm_head=True), "llama-tied"),
    _gptq("v1-4bit-g64-mixtral", "4-bit, group 64, asymmetric, v1 zeros", gptq(4, 64, False), "mixtral"),
    _gptq("act-order-mixtral", "4-bit, group 64, act-order", gptq(4, 64, act_order=True), "mixtral"),
)  # fmt: skip

FP8 = (
    _fp8(
        "ct-channel",
        "compressed-tensors, per channel, dynamic per token",
        compressed_tensors("float-quantized", activation=TOKEN_FP8),
    ),
    _fp8(
        "ct-channel-qwen2",
        "compressed-tensors, per channel, weight-only",
        compressed_tensors("float-quantized"),
        "qwen2",
    ),
    _fp8(
        "ct-tensor-static",
        "compressed-tensors, per tensor, static",
        compressed_tensors("float-quantized", PER_TENSOR, STATIC_FP8),
    ),
    _fp8("tensor-dynamic", "`fp8`, per tensor, dynamic", fp8()),
    _fp8("tensor-static", "`fp8`, per tensor, static", fp8(static=True), "qwen3"),
    _fp8("tensor-ignored", "`fp8`, per tensor, `ignored_layers`", fp8(ignored=("model.layers.0.mlp.down_proj",))),
    _fp8("block-128", "`fp8`, blocks of 128 x 128", fp8(block=(128, 128))),
    _fp8("block-128-tied", "`fp8`, blocks of 128 x 128", fp8(block=(128, 128)), "llama-tied"),
    _fp8(
        "kv-scales",
        "compressed-tensors, per channel, `kv_cache_scheme` scales",
        compressed_tensors("float-quantized", activation=TOKEN_FP8, kv_scales=(0.5, 0.25)),
    ),
    _fp8("lm-head", "`fp8`, per tensor, dynamic, quantized `lm_head`", fp8(lm_head=True)),
    _fp8(
        "ct-channel-mixtral",
        "compressed-tensors, per channel, dynamic per token",
        compressed_tensors("float-quantized", activation=TOKEN_FP8),
        "mixtral",
    ),
    _fp8(
        "ct-sparse",
        "compressed-tensors, per channel, dynamic, 2:4 zeros stored (`sparsity_config`)",
        sparse(compressed_tensors("float-quantized", activation=TOKEN_FP8)),
    ),
    _fp8("online-channel", "online, per channel", online_fp8()),
    _fp8("online-block", "online, blocks of 128 x 128", online_fp8((128, 128)), "qwen2"),
    _fp8("online-tied", "online, per channel", online_fp8(), "llama-tied"),
    _fp8("tensor-mixtral", "`fp8`, per tensor, dynamic", fp8(), "mixtral"),
    _fp8("block-mixtral", "`fp8`, blocks of 128 x 128", fp8(block=(128, 128)), "mixtral"),
    _fp8("online-mixtral", "online, per channel", online_fp8(), "mixtral"),
    _fp8("block-128-tp2", "`fp8`, blocks of 128 x 128", fp8(block=(128, 128)), tp=2),
    _fp8("online-channel-tp2", "online, per channel", online_fp8(), "qwen2", tp=2),
    _fp8("tensor-mixtral-tp2", "`fp8`, per tensor, dynamic", fp8(), "mixtral", tp=2),
)

INT8 = (
    _int8(
        "w8a8-token",
        "compressed-tensors W8A8, dynamic per token, symmetric",
        compressed_tensors("int-quantized", activation=TOKEN_INT8),
    ),
    _int8(
        "w8a8-token-asym",
        "compressed-tensors W8A8, dynamic per token, asymmetric",
        compressed_tensors("int-quantized", activation=TOKEN_INT8_ASYM),
        "qwen2",
    ),
    _int8(
        "w8a8-static",
        "compressed-tensors W8A8, static, symmetric",
        compressed_tensors("int-quantized", activation=STATIC_INT8),
    ),
    _int8(
        "w8a8-static-asym",
        "compressed-tensors W8A8, static, asymmetric",
        compressed_tensors("int-quantized", activation=STATIC_INT8_ASYM),
        "qwen3",
    ),
    _int8(
        "w8a8-tensor",
        "compressed-tensors W8A8, weights per tensor, dynamic per token",
        compressed_tensors("int-quantized", PER_TENSOR, TOKEN_INT8),
    ),
    _int8(
        "w8a8-token-mixtral",
        "compressed-tensors W8A8, dynamic per token, symmetric",
        compressed_tensors("int-quantized", activation=TOKEN_INT8),
        "mixtral",
    ),
    _int8("w8a16", "compressed-tensors W8A16, per channel", compressed_tensors("int-quantized")),
    _int8(
        "w8a16-g64-asym",
        "compressed-tensors W8A16, group 64, asymmetric",
        compressed_tensors("int-quantized", 64, sym=False),
        "llama-tied",
    ),
    _int8("online-w8a8", "online W8A8", online_int8()),
    _int8("online-w8a8-alias", "online W8A8, as `int8`", online_int8(), "qwen3", method="int8"),
    _int8("online-w8a16", "online W8A16", online_int8("none"), "qwen2"),
    _int8("online-w8a16-g64", "online W8A16, group 64", online_int8("none", 64)),
    _int8("online-tied", "online W8A16", online_int8("none"), "llama-tied"),
    _int8("online-w8a8-mixtral", "online W8A8", online_int8(), "mixtral"),
    _int8("online-w8a16-mixtral", "online W8A16", online_int8("none"), "mixtral"),
    _int8(
        "w8a8-token-tp2",
        "compressed-tensors W8A8, dynamic per token, symmetric",
        compressed_tensors("int-quantized", activation=TOKEN_INT8),
        tp=2,
    ),
    _int8(
        "w8a8-static-asym-tp2",
        "compressed-tensors W8A8, static, asymmetric",
        compressed_tensors("int-quantized", activation=STATIC_INT8_ASYM),
        "qwen3",
        tp=2,
    ),
    _int8("online-w8a8-mixtral-tp2", "online W8A8", online_int8(), "mixtral", tp=2),
)


def _mixed(name: str, variant: str, recipe: Recipe, architecture: str = "llama", **more: object) -> Cell:
    method = "vqp_compressed_tensors"
    return Cell(f"ct-{name}", "CT", method, variant, recipe, architecture, **more)  # type: ignore[arg-type]


PACKED = (
    _mixed("act-order-4bit-g64", "pack-quantized 4-bit, group 64, `actorder: group`", packed(4, 64, act_order=True)),
    _mixed("3bit-act-order-qwen3", "pack-quantized 3-bit, group 64, asymmetric, `actorder: group`",
           packed(3, 64, False, True), "qwen3"),
    _mixed("fp8-and-4bit", "FP8 per channel, dynamic, with down_proj pack-quantized 4-bit, group 128",
           mixture(compressed_tensors("float-quantized", activation=TOKEN_FP8, ), 4, 128, "down_proj"), "qwen2"),
    _mixed("w8a16-and-3bit", "INT8 W8A16 with o_proj pack-quantized 3-bit, group 64",
           mixture(compressed_tensors("int-quantized"), 3, 64, "o_proj"), "llama-tied"),
    _mixed("4bit-g64-mixtral", "pack-quantized 4-bit, group 64", packed(4, 64), "mixtral"),
)  # fmt: skip
CELLS = (*AWQ, *GPTQ, *FP8, *INT8, *PACKED)
