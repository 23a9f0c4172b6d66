"""Strict reading of a ``quantization_config``: every key is read, known to be harmless, or refused by name. No torch.

A key that nobody reads may change numbers: dropping it would serve another model without a word. So ``Fields`` keeps
account of what was read, and ``finish`` refuses the rest. A value that says "not used" (null, false, empty) is harmless
under any name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_quant_kernels.scheme import PER_CHANNEL
from vllm_quant_plugin.errors import CheckpointError

Config = Mapping[str, Any]
_REQUIRED: Any = object()
# Keys that vLLM adds to a config before it hands it on (model_loader/weight_utils.py).
_ADDED_BY_VLLM = frozenset({"total_num_heads", "total_num_kv_heads"})
# What pydantic takes for a boolean besides JSON's own (compressed-tensors reads its config with it).
_TRUE, _FALSE = ("true", "t", "yes", "y", "on", "1"), ("false", "f", "no", "n", "off", "0")


@dataclass(frozen=True)
class Enumeration:
    """A field with a closed set of values, spelled as the library that writes the dialect spells them.

    Attributes:
        meanings: every spelling that is read, in lower case unless ``exact``, and what it means. Keys are strings, and
            booleans where the library takes them.
        exact: the library compares strings as they are; else it lowers (or raises) them first.
    """

    meanings: Mapping[str | bool, str]
    exact: bool = False

    def meaning(self, value: Any) -> str | None:
        """What ``value`` means, None where it is no spelling of this enumeration. 1 is not true."""
        if isinstance(value, bool):
            return next((m for key, m in self.meanings.items() if key is value), None)
        if not isinstance(value, str):
            return None
        return self.meanings.get(value if self.exact else value.lower())


# The words of packed integer layouts; GPTQModel also has wider and narrower ones.
PACK_DTYPE = Enumeration({"int32": "int32"})


class Fields:
    """The keys of one JSON object.

    Args:
        config: the object.
        where: its name in messages, e.g. ``quantization_config``.
    """

    def __init__(self, config: Config, where: str = "quantization_config") -> None:
        if not isinstance(config, Mapping):
            raise CheckpointError(f"{where} must be an object, got {config!r}", "fix config.json")
        self._config, self._where = config, where
        self._read: set[str] = set()

    def get(self, *names: str, default: Any = None) -> Any:
        """The value of the first name that has one. All names count as read."""
        self._read.update(names)
        return next((self._config[name] for name in names if self._config.get(name) is not None), default)

    def integer(self, *names: str, default: int = _REQUIRED) -> int:
        """Raises CheckpointError for anything but an integer, and where there is neither a value nor a default."""
        value = self.get(*names)
        if value is None:
            if default is _REQUIRED:
                raise CheckpointError(f"{self._where} has no {names[0]!r}", "fix config.json")
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            name = next(n for n in names if self._config.get(n) is not None)
            raise CheckpointError(f"{self._where}.{name} must be an integer, got {value!r}", "fix config.json")
        return value

    def boolean(self, *names: str, default: bool, words: bool = False) -> bool:
        """true and false, 1 and 0.

        Args:
            words: the writing library also takes strings such as ``"true"``, ``"off"``, ``"1"``. Others keep a string
                as it is, and ``"false"`` is true to them: it is refused.
        """
        value = self.get(*names)
        if value is None:
            return default
        if isinstance(value, int) and value in (0, 1):
            return bool(value)
        word = value.lower() if words and isinstance(value, str) else None
        if word in _TRUE:
            return True
        if word in _FALSE:
            return False
        raise CheckpointError(f"{self._where}.{names[0]} must be true or false, got {value!r}", "fix config.json")

    def choice(self, *names: str, of: Enumeration, default: str, what: str = "") -> str:
        """One value of an enumeration. Names that are all given must agree.

        Args:
            what: name of the enumeration in the message.

        Raises:
            CheckpointError: another value, or names that contradict each other.
        """
        self._read.update(names)
        found: dict[str, str] = {}
        for name in names:
            value = self._config.get(name)
            if value is None:
                continue
            meaning = of.meaning(value)
            if meaning is None:
                known = ", ".join(dict.fromkeys(of.meanings.values()))
                raise CheckpointError(
                    f"{what or f'{self._where}.{name}'} {value!r} is not supported", f"{known} can be read"
                )
            found[name] = meaning
        if len(set(found.values())) > 1:
            listed = " and ".join(f"{name} {self._config[name]!r}" for name in found)
            raise CheckpointError(f"{self._where}: {listed} contradict each other", "fix config.json")
        return next(iter(found.values()), default)

    def names(self, *keys: str) -> list[str]:
        """A list of module names, flattened by one level; of the first key that has any."""
        value = self.get(*keys) or []
        if isinstance(value, str) or not isinstance(value, list | tuple):
            raise CheckpointError(f"{self._where}.{keys[0]} must be a list of names, got {value!r}", "fix config.json")
        return [str(n) for item in value for n in (item if isinstance(item, list) else [item])]

    def harmless(self, names: Collection[str]) -> None:
        """Keys that say how a checkpoint was made, or how another library runs it."""
        self._read.update(names)

    def refuse(self, name: str, why: str, hint: str = "requantize the model without it") -> None:
        """Refuse ``name`` unless its value says "not used".

        Raises:
            CheckpointError: it is used.
        """
        self._read.add(name)
        if _used(self._config.get(name)):
            raise CheckpointError(f"{self._where}.{name}: {why}", hint)

    def finish(self) -> None:
        """Raises CheckpointError naming a key that nobody has read."""
        for name, value in self._config.items():
            if name not in self._read and name not in _ADDED_BY_VLLM and _used(value):
                raise CheckpointError(
                    f"{self._where}.{name} is not known to this plugin: it may change what the weights mean",
                    "remove the key from config.json if it does not, or report the checkpoint",
                )


def _used(value: Any) -> bool:
    return value is not None and value is not False and value not in ("", [], {})


def check_group_size(group_size: int) -> int:
    """``group_size`` itself. Raises CheckpointError unless it is -1 (one scale per channel) or positive."""
    if group_size == PER_CHANNEL or group_size > 0:
        return group_size
    raise CheckpointError(f"group_size {group_size} is impossible", "it is -1 (one per channel) or positive")


def check_bits(bits: int, allowed: Collection[int], what: str, hint: str = "") -> int:
    """``bits`` itself. Raises CheckpointError unless the layout holds that many."""
    if bits in allowed:
        return bits
    listed = ", ".join(map(str, allowed))
    more = f"; {hint}" if hint else ""
    raise CheckpointError(f"{what} with {bits} bits is not supported", f"this layout holds {listed}{more}")


def check_block(value: Any) -> tuple[int, int]:
    """(N, K) of a block: two positive integers, or a string such as ``128x128``.

    Raises:
        CheckpointError: anything else.
    """
    parts = value.lower().split("x") if isinstance(value, str) else value
    try:
        n, k = (int(part) for part in parts)
    except (TypeError, ValueError):
        n = k = 0
    if n <= 0 or k <= 0 or any(isinstance(part, bool | float) for part in parts):
        raise CheckpointError(f"weight_block_size {value!r} is impossible", "it is two positive integers")
    return n, k
