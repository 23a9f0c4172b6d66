"""What transformers refuses of a config's lists with one entry per layer. No torch.

Source: ``PreTrainedConfig.validate_layer_type`` in transformers/configuration_utils.py, version 5.19.
"""

from __future__ import annotations

from vllm_quant_plugin.architecture.reader import Reader
from vllm_quant_plugin.errors import CheckpointError

# Older names that transformers renames before it looks are among them.
ATTENTION_KINDS = frozenset((
    "full_attention", "sliding_attention", "chunked_attention", "window_attention", "indexed_attention",
    "compressed_sparse_attention", "heavily_compressed_attention", "minimax_m3_sparse", "conv", "moe", "hybrid",
    "hybrid_sliding", "linear_attention", "mamba", "attention", "deepseek_sparse_attention", "qwen_sparse_attention",
))  # fmt: skip
MLP_KINDS = frozenset(("sparse", "dense"))
# Their classes derive the number of layers, or the last layer, from the list or correct it.
_OWN_RULES = ("nemotron_h", "gemma4_text")


def check_layer_lists(reader: Reader, model_type: str) -> None:
    """Refuse ``layer_types`` and ``mlp_layer_types`` that do not name each layer.

    Raises:
        CheckpointError: as many names as layers are needed, and only names that transformers knows.
    """
    if model_type in _OWN_RULES or not reader.has("num_hidden_layers"):
        return
    layers = reader.integer("num_hidden_layers", limit="layers")
    for key, kinds in (("layer_types", ATTENTION_KINDS), ("mlp_layer_types", MLP_KINDS)):
        named = reader.strings(key)
        if named is None:  # without layer_types transformers does not look at the other list either
            return
        unknown = next((one for one in named if one not in kinds), None)
        if unknown is not None:
            raise CheckpointError(
                f"{reader.where}: {key} names {unknown!r:.60}, which transformers does not know", "fix config.json"
            )
        if len(named) != layers:
            raise CheckpointError(
                f"{reader.where}: {key} names {len(named)} layers, num_hidden_layers is {layers}", "fix config.json"
            )
