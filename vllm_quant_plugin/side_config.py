"""Quantization described in a file of its own beside config.json, as older tools wrote it. No torch.

quantize_config.json     AutoGPTQ, GPTQModel: bits, group_size, desc_act, sym; no quant_method in old ones
quant_config.json        llm-awq, AutoAWQ: w_bit, q_group_size, zero_point, version; some AWQ tools use the first name
hf_quant_config.json     ModelOpt up to 0.29: producer and quantization

vLLM reads the third by itself, the first two where ``--quantization`` names their method.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.json_file import read_json

GPTQ_FILES = ("quantize_config.json",)
AWQ_FILES = ("quantize_config.json", "quant_config.json")
MODELOPT_FILE = "hf_quant_config.json"
_AWQ_KEYS = ("w_bit", "q_group_size", "zero_point", "version")
_GPTQ_KEYS = ("desc_act", "sym", "damp_percent", "checkpoint_format")


def with_method(config: Mapping[str, Any], file: str = "") -> dict[str, Any]:
    """``config`` with the ``quant_method`` that its keys show where it names none.

    Raises:
        CheckpointError: it is of no dialect that is known.
    """
    if config.get("quant_method"):
        return dict(config)
    if isinstance(config.get("quantization"), Mapping):
        return {"quant_method": "modelopt", **config}
    if "bits" in config or "w_bit" in config:
        for method, keys in (("awq", _AWQ_KEYS), ("gptq", _GPTQ_KEYS)):
            if any(key in config for key in keys):
                return {"quant_method": method, **config}
    raise CheckpointError(
        f"{file or 'the quantization config'} names no quant_method and has the keys of none",
        "add quantization_config with a quant_method to config.json",
    )


def read_side_config(folder: Path) -> tuple[dict[str, Any], str] | None:
    """The config and the name of the file that holds it; None where there is none.

    Raises:
        CheckpointError: unreadable, of no known dialect, or two files that contradict each other.
    """
    names = [name for name in (*AWQ_FILES, MODELOPT_FILE) if (folder / name).is_file()]
    found = [(with_method(read_json(folder / name), name), name) for name in names]
    if len(found) > 1 and any(config != found[0][0] for config, _ in found[1:]):
        raise CheckpointError(f"{folder}: {' and '.join(names)} describe two quantizations", "keep the one that holds")
    return found[0] if found else None
