"""``transform_config`` of compressed-tensors. No torch.

Source: compressed-tensors 0.17, transform/transform_args.py and transform_scheme.py.
"""

from __future__ import annotations

import re
from typing import Any

from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.formats.fields import Config, Fields
from vllm_quant_plugin.transforms import KINDS, LOCATIONS, Application, Transform

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
