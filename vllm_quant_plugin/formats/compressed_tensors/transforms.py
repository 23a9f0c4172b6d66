"""``transform_config`` of compressed-tensors. No torch.

Source: compressed-tensors 0.17, transform/transform_args.py and transform_scheme.py.
"""

from __future__ import annotations

import re
from typing import Any

from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.formats.fields import Config, Fields
from vllm_quant_plugin.formats.host import Host
from vllm_quant_plugin.schemes import ModelScheme
from vllm_quant_plugin.transforms import ATTENTION, KINDS, LOCATIONS, Application, Transform

KEY = "transform_config"
_WHERE = f"quantization_config.{KEY}"
_PRECISIONS = ("float64", "float32", "bfloat16", "float16")


def transforms_of(fields: Fields) -> tuple[Application, ...]:
    """The transforms of a ``quantization_config``, in the order of the config.

    Raises:
        CheckpointError: a key or a value is not known.
    """
    config = fields.get(KEY) or {}
    whole = Fields(config, _WHERE)
    groups = whole.get("config_groups") or {}
    whole.finish()
    if not isinstance(groups, dict):
        raise CheckpointError(f"{_WHERE}.config_groups must be an object, got {groups!r}", "fix config.json")
    return tuple(one for name, group in groups.items() for one in _group(str(name), group))


def _group(name: str, config: Config) -> list[Application]:
    where = f"{_WHERE}.config_groups.{name}"
    fields = Fields(config, where)
    fields.harmless(["requires_grad"])  # of training
    kind = fields.get("type")
    if kind not in KINDS:
        raise CheckpointError(f"{where}.type {kind!r} is not supported", f"{', '.join(KINDS)} are")
    # Some releases of the library write block_size; all read head_dim.
    sizes = {fields.integer(key, default=0) for key in ("head_dim", "block_size")} - {0}
    if len(sizes) > 1 or any(size < 0 for size in sizes):
        raise CheckpointError(f"{where}: head_dim and block_size are {sorted(sizes)}", "fix config.json")
    randomize = fields.boolean("randomize", default=False)
    precision = str(fields.get("precision") or "float32").removeprefix("torch.")
    if precision not in _PRECISIONS:
        raise CheckpointError(f"{where}.precision {precision!r} is not supported", f"{', '.join(_PRECISIONS)} are")
    transform = Transform(
        name,
        kind,
        block=sizes.pop() if sizes else None,
        permuted=randomize and kind != "random-matrix",
        double=precision == "float64",
    )
    applied = fields.get("apply") or []
    fields.finish()
    if not isinstance(applied, list):
        raise CheckpointError(f"{where}.apply must be a list, got {applied!r}", "fix config.json")
    return [_application(transform, one, f"{where}.apply[{i}]") for i, one in enumerate(applied)]


def _application(transform: Transform, config: Config, where: str) -> Application:
    fields = Fields(config, where)
    location = fields.get("location")
    if location not in LOCATIONS:
        raise CheckpointError(f"{where}.location {location!r} is not supported", f"{', '.join(LOCATIONS)} are")
    inverse = fields.boolean("inverse", default=False)
    targets, ignore = (_targets(fields.get(key), f"{where}.{key}") for key in ("targets", "ignore"))
    fields.finish()
    return Application(transform, location, targets, inverse, ignore)


def _targets(value: Any, where: str) -> tuple[str, ...]:
    """Module names, of a list or a single one."""
    found = [value] if isinstance(value, str) else value or []
    if not isinstance(found, list) or not all(isinstance(target, str) for target in found):
        raise CheckpointError(f"{where} must be a list of names, got {value!r}", "fix config.json")
    for target in found:
        try:
            re.compile(target.removeprefix("re:") if target.startswith("re:") else "")
        except re.error as error:
            raise CheckpointError(f"{where}: {target!r} is no regular expression: {error}", "fix config.json") from None
    return tuple(found)


def in_tree(model: ModelScheme, host: Host) -> str | None:
    """Why vLLM's own method does not apply the online transforms on ``host``; None when it does.

    Source: vLLM 0.32, compressed_tensors/transform/linear.py and module.py. The Hadamard operator is CUDA's. Only
    linear layers are looked at: lm_head, embed_tokens, experts, queries and keys are passed over. Of several transforms
    at one location the last counts. Every stored matrix is divided by sqrt(n), and transposed for the inverse, which is
    wrong for other than Hadamard matrices.
    """
    for one in model.online:
        if host.device != "cuda":
            return f"{one.describe()} on a CPU"
        if one.transform.kind == "random-matrix" or one.transform.permuted:
            return f"{one.describe()}{' with a permutation' * one.transform.permuted}"
        if one.location in ATTENTION or any(_beyond_linear(target) for target in one.targets):
            return f"{one.describe()} of other than linear layers"
    locations = [one.location for one in model.online]
    if len(set(locations)) < len(locations):
        return "several transforms at one location"
    config = model.raw.get(KEY)
    groups = config.get("config_groups") if isinstance(config, dict) else None
    if isinstance(groups, dict) and any("block_size" in group for group in groups.values()):
        return "transform_config with block_size"  # an older spelling of head_dim, which vLLM's library refuses
    return None


def _beyond_linear(target: str) -> bool:
    return any(word in target for word in ("lm_head", "embed", "Embedding", "experts"))
