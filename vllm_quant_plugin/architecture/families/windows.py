"""Which layers of a model attend to a window only. No torch.

Each rule gives, per layer, the window in tokens, 0 for full attention or minus the chunk for
chunked attention, as vLLM builds it.
"""

from __future__ import annotations

from collections.abc import Callable

from vllm_quant_plugin.architecture.reader import Reader

Windows = list[int]


def _window(reader: Reader) -> int:
    return reader.integer("sliding_window", default=0, limit="length", least=0)


def layer_types(reader: Reader, layers: int) -> Windows:
    """``layer_types`` names each layer; without it no layer slides."""
    types = reader.strings("layer_types")
    window = _window(reader)
    if not types or not window:
        return [0] * layers
    return [window if i < len(types) and types[i] == "sliding_attention" else 0 for i in range(layers)]


def uniform(reader: Reader, layers: int) -> Windows:
    """All layers slide when ``sliding_window`` is set (Mistral 7B v0.1, Phi-3)."""
    if reader.has("layer_types"):
        return layer_types(reader, layers)
    return [_window(reader)] * layers


def none(_: Reader, layers: int) -> Windows:
    return [0] * layers


def qwen(reader: Reader, layers: int) -> Windows:
    """Qwen slides only with ``use_sliding_window``, from ``max_window_layers`` on."""
    if not reader.flag("use_sliding_window"):
        return [0] * layers
    if reader.has("layer_types"):
        return layer_types(reader, layers)
    first, window = reader.integer("max_window_layers", default=layers, limit="layers", least=0), _window(reader)
    return [window if i >= first else 0 for i in range(layers)]


def alternating(reader: Reader, layers: int) -> Windows:
    """Every other layer slides, the first included (Gemma 2, GPT-OSS)."""
    if reader.has("layer_types"):
        return layer_types(reader, layers)
    window = _window(reader)
    return [0 if i % 2 else window for i in range(layers)]


def pattern(reader: Reader, layers: int) -> Windows:
    """Every ``sliding_window_pattern``-th layer is full (Gemma 3, Command R7B, EXAONE 4)."""
    if reader.has("layer_types"):
        return layer_types(reader, layers)
    window, step = _window(reader), reader.integer("sliding_window_pattern", default=6, limit="layers")
    return [0 if (i + 1) % step == 0 else window for i in range(layers)]


def llama4(reader: Reader, layers: int) -> Windows:
    """Layers with rotary embedding attend within their chunk (negative: chunked); each fourth one is full."""
    chunk = reader.integer("attention_chunk_size", default=0, limit="length", least=0)
    rope = reader.items("no_rope_layers")
    if not rope:
        step = reader.integer("no_rope_layer_interval", default=4, limit="layers")
        rope = [int((i + 1) % step != 0) for i in range(layers)]
    return [-chunk if i < len(rope) and rope[i] else 0 for i in range(layers)]


RULES: dict[str, Callable[[Reader, int], Windows]] = {
    "layer_types": layer_types,
    "uniform": uniform,
    "none": none,
    "qwen": qwen,
    "alternating": alternating,
    "gemma3": pattern,
    "cohere2": pattern,
    "exaone4": pattern,
    "llama4": llama4,
}
