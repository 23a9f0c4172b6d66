"""Reads the ``vllm serve`` arguments that a user typed, without importing vLLM.

Only what the launcher needs is read (where the server listens, what constrains the plan); nothing is rewritten. The
rules are those of vLLM's own parser (vllm/utils/argparse_utils.py): in names ``_`` and ``-`` are alike, so are
``--name=value`` and ``--name value``, argparse's unambiguous prefixes are accepted, the command line wins over
``--config FILE``, and the last of several values wins.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_quant_plugin.errors import UsageError

# Options that the launcher or the planner reads, with vLLM's short spellings.
SHORT = {
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-dp": "--data-parallel-size",
    "-asc": "--api-server-count",
    "-q": "--quantization",
    "-ep": "--enable-expert-parallel",
}
_SUFFIX = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_NUMBER = re.compile(r"^(\d+(?:\.\d+)?)([kmgtKMGT]?)$")


@dataclass(frozen=True)
class ServeArgs:
    """The arguments after ``serve``: the model and the flags, exactly as typed.

    Attributes:
        model: the positional model, or that of ``--model``.
        words: every other argument, in order.
        config: keys and values of the ``--config`` file, as flag names.
    """

    model: str
    words: tuple[str, ...]
    config: tuple[tuple[str, str], ...] = ()

    def values(self, option: str) -> list[str]:
        """The values of ``option`` (e.g. ``--max-model-len``), of which the last wins; a switch has ``""``."""
        found = [value for name, value in self.config if name == option]
        for index, word in enumerate(self.words):
            name, separator, value = word.partition("=")
            if not _spells(name, option):
                continue
            if separator:
                found.append(value)
            elif index + 1 < len(self.words) and not _is_flag(self.words[index + 1]):
                found.append(self.words[index + 1])
            else:
                found.append("")
        return found

    def has(self, option: str) -> bool:
        """Whether the user set ``option`` in any spelling, its ``--no-`` form included."""
        return bool(self.values(option) or self.values(option.replace("--", "--no-", 1)))

    def text(self, option: str) -> str | None:
        """The last value of ``option``, None when absent."""
        found = self.values(option)
        return found[-1] if found else None

    def integer(self, option: str) -> int | None:
        """The last value of ``option`` as an integer; ``1k`` is 1,000 and ``1K`` is 1,024, as in vLLM.

        Returns None when absent, and for ``auto`` or ``-1``, which leave the choice to vLLM.

        Raises:
            UsageError: not a number.
        """
        value = self.text(option)
        if value is None or value in ("auto", "-1"):
            return None
        match = _NUMBER.match(value)
        if match is None:
            raise UsageError(f"{option} {value!r} is not a number", "give digits, e.g. 4096 or 4K")
        return int(float(match[1]) * _SUFFIX.get(match[2], 1))

    def number(self, option: str) -> float | None:
        """The last value of ``option`` as a float, None when absent.

        Raises:
            UsageError: not a number.
        """
        value = self.text(option)
        try:
            return None if value is None else float(value)
        except ValueError:
            raise UsageError(f"{option} {value!r} is not a number", "give a decimal number") from None

    def switch(self, option: str) -> bool:
        """Whether the switch is on (``--flag`` without a later ``--no-flag``)."""
        negative = option.replace("--", "--no-", 1)
        state = any(name == option for name, _ in self.config)
        for word in self.words:
            name = word.partition("=")[0]
            if _spells(name, option):
                state = True
            elif _spells(name, negative):
                state = False
        return state


def _is_flag(word: str) -> bool:
    return word.startswith("-") and not re.match(r"^-\d", word)


def _spells(name: str, option: str) -> bool:
    """Whether ``name`` is ``option``, its short form, or a prefix that argparse would accept for it."""
    if not name.startswith("--"):
        return SHORT.get(name) == option
    head, dot, tail = name.partition(".")
    name = head.replace("_", "-") + dot + tail
    return name == option or (len(name) >= 6 and option.startswith(name) and name not in _WHOLE)


# Options whose whole name begins another option's name: they are never prefixes.
_WHOLE = frozenset({"--host", "--port", "--model", "--dtype", "--config", "--quantization", "--device", "--seed"})


def parse_args(words: Sequence[str]) -> ServeArgs:
    """Split ``[MODEL] [vllm serve flags]``.

    Raises:
        UsageError: no model, or a ``--config`` file that cannot be read.
    """
    rest = list(words)
    model = rest.pop(0) if rest and not rest[0].startswith("-") else None
    probe = ServeArgs("", tuple(rest))
    config = _read_config(probe.text("--config"))
    if model is None:
        model = probe.text("--model") or dict(config).get("--model")
        rest = _without(rest, "--model")
    if not model:
        raise UsageError("no model given", "give it first: vllm-quant serve MODEL [flags]")
    return ServeArgs(model, tuple(rest), config)


def _without(words: list[str], option: str) -> list[str]:
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word == option:
            skip = True
        elif not word.startswith(option + "="):
            kept.append(word)
    return kept


def _read_config(path: str | None) -> tuple[tuple[str, str], ...]:
    if path is None:
        return ()
    import yaml  # type: ignore[import-untyped]

    try:
        loaded = yaml.safe_load(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as err:
        raise UsageError(f"--config {path}: {str(err).splitlines()[0]}", "give a readable YAML file") from None
    if not isinstance(loaded, dict):
        raise UsageError(f"--config {path} does not map flags to values", "write one `flag: value` per line")
    flags = []
    for key, value in loaded.items():
        name = "--" + str(key).replace("_", "-")
        if value is False:
            flags.append((name.replace("--", "--no-", 1), ""))
        else:
            flags.append((name, "" if value is True else str(value)))
    return tuple(flags)
