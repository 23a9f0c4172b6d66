"""What vLLM would refuse only minutes later, because it has to be imported first: looked at before anything starts.

Only what is wrong for certain is refused here. A Hub model's files are not looked at.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from vllm_quant_plugin.checkpoint import PICKLE_PATTERNS, read_checkpoint
from vllm_quant_plugin.errors import CheckpointError, UsageError
from vllm_quant_serve.flags import ServeArgs

# Flags whose values are files of this machine.
_FILES = ("--ssl-keyfile", "--ssl-certfile", "--ssl-ca-certs")
# A chat template with one of these is the template itself (vllm/renderers/hf.py).
_TEMPLATE = frozenset("{}\n")
# What holds a vocabulary, or reads one from elsewhere.
_VOCABULARY = ("tokenizer.json", "*.model", "*.tiktoken", "tekken.json", "*vocab*", "spiece*", "sentencepiece*",
               "tokenization*.py", "*.gguf")  # fmt: skip
# Their vocabulary is the bytes or code points.
_WITHOUT_VOCABULARY = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")


def check(words: ServeArgs) -> None:
    """Refuse flags and model folders that vLLM cannot serve.

    Raises:
        UsageError: a flag's value is malformed or names a file that is not there.
        CheckpointError: the folder has no weights, pickle weights only, or no readable tokenizer.
    """
    _check_flags(words)
    folder = Path(words.model)
    if folder.is_dir():
        _check_weights(words, folder)
        _check_tokenizer(words, folder)


def _check_flags(words: ServeArgs) -> None:
    # A --config file may say it as YAML.
    overrides = replace(words, config=()).text("--hf-overrides")
    if overrides is not None:
        try:
            malformed = None if isinstance(json.loads(overrides), dict) else "it is no object"
        except ValueError as err:
            malformed = str(err)
        if malformed:
            raise UsageError(f"--hf-overrides {overrides!r} is no JSON object: {malformed}",
                             """write it in single quotes: --hf-overrides '{"key": 1}'""")  # fmt: skip
    for flag in _FILES:
        value = words.text(flag)
        if value is not None and not Path(value).is_file():
            raise UsageError(f"{flag} {value}: no such file", "give a file that exists")
    template = words.text("--chat-template")
    if template is not None and not _TEMPLATE & set(template) and not Path(template).is_file():
        raise UsageError(f"--chat-template {template}: no such file", "give a file that exists, or the template itself")
    tokenizer = words.text("--tokenizer")
    if tokenizer is not None and tokenizer.startswith(("/", "./", "../", "~")) and not Path(tokenizer).exists():
        raise UsageError(f"--tokenizer {tokenizer}: no such folder", "give a folder with a tokenizer, or a Hub id")


def _check_weights(words: ServeArgs, folder: Path) -> None:
    """Pickle weights alone are refused as well, since loading them can run code, unless the user chose how to load."""
    if words.has("--load-format") or _has(folder, "*.gguf"):
        return
    if _has(folder, *PICKLE_PATTERNS):
        read_checkpoint(folder)
    elif not _has(folder, "*.safetensors"):
        raise CheckpointError(f"{folder}: no weights (*.safetensors)",
                              "copy or download them, or give --load-format dummy")  # fmt: skip


def _check_tokenizer(words: ServeArgs, folder: Path) -> None:
    if any(words.has(flag) for flag in ("--tokenizer", "--tokenizer-mode", "--skip-tokenizer-init")):
        return
    settings = _read(folder / "tokenizer_config.json")
    if _read(folder / "tokenizer.json") is not None or _has(folder, *_VOCABULARY):
        return
    if settings is not None and (settings.get("auto_map") or settings.get("tokenizer_class") in _WITHOUT_VOCABULARY):
        return
    raise CheckpointError(f"{folder}: no tokenizer (tokenizer.json)",
                          "copy it from the original model, or give --tokenizer or --skip-tokenizer-init")  # fmt: skip


def _read(path: Path) -> dict[str, object] | None:
    """A JSON file, None where there is none.

    Raises:
        CheckpointError: it is no JSON object.
    """
    if not path.exists():
        return None
    try:
        loaded = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as err:
        raise CheckpointError(f"{path}: not readable as JSON: {err}", "copy or download the file again") from None
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path}: expected a JSON object", "copy or download the file again")
    return loaded


def _has(folder: Path, *patterns: str) -> bool:
    return any(next(folder.glob(pattern), None) is not None for pattern in patterns)
