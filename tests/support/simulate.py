"""A quantized checkpoint's logits from transformers in float32: weights multiplied out, activations rounded.

The rounding here is written down again, from vLLM's convention (csrc/quantization: scaled_int8_quant), not taken
from the package that is tested.
"""

from __future__ import annotations

from pathlib import Path

import torch

from vllm_quant_plugin.checkpoint import read_checkpoint
from vllm_quant_plugin.formats import get_format, parse_quantization_config
from vllm_quant_plugin.quantize.io.shards import read_tensor
from vllm_quant_plugin.quantize.modules import linear_modules
from vllm_quant_plugin.text.windows import HELD_OUT, load_tokenizer, read_windows


def _round_int8(x: torch.Tensor, static: torch.Tensor | None) -> torch.Tensor:
    scale = x.abs().amax(-1, keepdim=True) / 127 if static is None else static
    return (x / scale).round().clamp(-128, 127) * scale


def log_probabilities(source: Path, made: Path | None = None, windows: int = 8, length: int = 128) -> torch.Tensor:
    """float32 (windows, length, V) on held-out code.

    Args:
        source: the unquantized model.
        made: what was made of it; None for the model itself.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    if made is not None:
        after = read_checkpoint(made)
        schemes = parse_quantization_config(after.quantization_config or {})
        parameters = dict(model.named_parameters())
        for name in set(after.tensors) & set(parameters):
            parameters[name].data.copy_(read_tensor(after, name))
        for module in linear_modules(read_checkpoint(source)):
            scheme = schemes.scheme_for(module.name)
            assert scheme is not None
            names = [n for n in after.tensors if n.rpartition(".")[0] == module.name]
            tensors = {n.rpartition(".")[2]: read_tensor(after, n) for n in names}
            layout, shape = get_format(scheme), (module.out_features, module.in_features)
            layout.validate(module.name, tensors, scheme, *shape)
            weight = layout.unpack(tensors, scheme, *shape).validate()
            parameters[f"{module.name}.weight"].data.copy_(weight.dequantize())
            if scheme.activation is not None and scheme.is_int:
                static = tensors.get("input_scale")
                model.get_submodule(module.name).register_forward_pre_hook(
                    lambda _module, args, static=static: (_round_int8(args[0], static),)
                )
    tokens = torch.tensor(read_windows(HELD_OUT[0], load_tokenizer(source), length, windows))
    with torch.no_grad():
        return torch.log_softmax(model(tokens).logits, -1)


def mean_kl(base: torch.Tensor, other: torch.Tensor) -> float:
    """Mean KL divergence per token in nats."""
    return float((base.exp() * (base - other)).sum(-1).mean())
