"""Option groups of a quantization run, and ``--level`` presets. No torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from vllm_quant_kernels.scheme import PER_CHANNEL
from vllm_quant_plugin.errors import UsageError

LEVEL_EXAMPLES = "4bit, 4bit-64g, 4bit-128g, 4bit-actorder, 3bit, 8bit, W8A8, W8A16, W4A16, channel, tensor, block"
_BITS_LEVEL = re.compile(r"^(?P<bits>\d+)bit(?P<more>(-(\d+g|channel|actorder|sym|asym))*)$")
_WEIGHTS_LEVEL = re.compile(r"^w(?P<weights>\d+)a(?P<activations>8|16)$")


@dataclass(frozen=True)
class SchemeOptions:
    """What the weights become; what is left out gets the preset's value, else the algorithm's default.

    Attributes:
        level: a preset, e.g. ``4bit-64g`` or ``W8A8``; explicit values win over it.
        bits, group_size, act_order, symmetric: see ``StoredScheme``.
        activations: ``dynamic`` or ``static``; static scales are measured on calibration text.
        kv_cache: measure and store the scales of an FP8 KV cache.
    """

    help_panel: ClassVar[str] = "Weights"

    level: Annotated[str | None, typer.Option(help=f"Preset: {LEVEL_EXAMPLES}.")] = None
    bits: Annotated[int | None, typer.Option(help="Bits per weight.")] = None
    group_size: Annotated[int | None, typer.Option(help="Input features per scale; -1 is one per channel.")] = None
    act_order: Annotated[
        bool | None, typer.Option("--act-order/--no-act-order", help="GPTQ: quantize columns by importance.")
    ] = None
    symmetric: Annotated[bool | None, typer.Option("--sym/--asym", help="Without or with zero points.")] = None
    activations: Annotated[
        str | None, typer.Option(help="INT8 and FP8: dynamic, or static (measured on calibration text).")
    ] = None
    kv_cache: Annotated[bool, typer.Option("--kv-cache", help="Store measured scales of an FP8 KV cache.")] = False


@dataclass(frozen=True)
class Calibration:
    """Which text, and how much of it.

    Attributes:
        source: a text, JSON, JSONL or Parquet file or a Hub data set, or None for the text that ships with the package.
        samples: number of windows.
        seq_len: tokens in a window.
        seed: of the choice of windows.
        packing: windows from the concatenated documents; else the beginning of each document that fills a window.

    Raises:
        UsageError: fewer than one window of 8 tokens.
    """

    help_panel: ClassVar[str] = "Calibration"

    source: Annotated[
        str | None,
        typer.Option(
            "--calibration",
            help="Text, JSON, JSONL or Parquet file, or Hub data set org/name:split; default: the shipped text.",
        ),
    ] = None
    samples: Annotated[int, typer.Option("--calibration-samples", help="Calibration windows.")] = 128
    seq_len: Annotated[int, typer.Option(help="Tokens per window.")] = 512
    seed: Annotated[int, typer.Option(help="Choice of calibration windows.")] = 0
    packing: Annotated[
        bool,
        typer.Option(
            " /--truncate",
            help="A window from each document's beginning, not from the concatenated documents.",
            show_default=False,
        ),
    ] = True

    def __post_init__(self) -> None:
        if self.samples < 1 or self.seq_len < 8:
            raise UsageError(
                "calibration needs at least 1 sample of 8 tokens", "raise --calibration-samples or --seq-len"
            )


@dataclass(frozen=True)
class MixedOptions:
    """Mixed precision: by module pattern, or to a size.

    Attributes:
        recipe_file: YAML file, see ``mixed.recipe_file``.
        target_bpw: stored bits per weight of the result.
        target_size: bytes of the whole model, such as ``4.5GB``.
    """

    help_panel: ClassVar[str] = "Mixed precision"

    recipe_file: Annotated[Path | None, typer.Option("--recipe", help="YAML: bits by module pattern.")] = None
    target_bpw: Annotated[
        float | None, typer.Option(help="Stored bits per weight, chosen by measured sensitivity.")
    ] = None
    target_size: Annotated[str | None, typer.Option(help="The same, as a size of the whole model: 4.5GB.")] = None


@dataclass(frozen=True)
class QualityOptions:
    """The quality report at the end of a run.

    Attributes:
        measure: compare the result with the original through vLLM.
        max_kl: the largest mean KL in nats per token that is accepted, None for no limit.
    """

    help_panel: ClassVar[str] = "Quality"

    measure: Annotated[
        bool, typer.Option("--eval/--no-eval", help="Compare with the original through vLLM at the end.")
    ] = True
    max_kl: Annotated[
        float | None, typer.Option(help="Exit with code 9 when a text's mean KL in nats per token is above this.")
    ] = None

    def __post_init__(self) -> None:
        if self.max_kl is not None and not self.measure:
            raise UsageError("--max-kl needs the evaluation", "leave --no-eval out")


@dataclass(frozen=True)
class SchemeRequest:
    """``SchemeOptions`` with the preset read; None leaves the choice to the algorithm.

    Attributes:
        quantize_activations: whether activations have 8 bits.
        preset: the algorithm's own preset that was named.
    """

    bits: int | None = None
    group_size: int | None = None
    act_order: bool | None = None
    symmetric: bool | None = None
    quantize_activations: bool | None = None
    activations: str | None = None
    preset: str | None = None


def read_level(level: str, presets: Sequence[str] = ()) -> SchemeRequest:
    """What a preset means.

    Args:
        presets: names that the algorithm knows beside the common ones.

    Raises:
        UsageError: unknown.
    """
    text = level.strip().lower()
    if found := _BITS_LEVEL.match(text):
        request = SchemeRequest(bits=int(found["bits"]))
        for part in filter(None, found["more"].split("-")):
            if part in ("sym", "asym"):
                request = replace(request, symmetric=part == "sym")
            elif part == "actorder":
                request = replace(request, act_order=True)
            else:
                request = replace(request, group_size=PER_CHANNEL if part == "channel" else int(part[:-1]))
        return request
    if found := _WEIGHTS_LEVEL.match(text):
        return SchemeRequest(bits=int(found["weights"]), quantize_activations=found["activations"] == "8")
    if text in presets:
        return SchemeRequest(preset=text)
    examples = [example.lower() for example in LEVEL_EXAMPLES.split(", ")]
    if text in examples:
        raise UsageError(f"--level {text} is of another method", "leave -m out, and the level chooses the method")
    close = difflib.get_close_matches(text, examples, n=1)
    meant = f"did you mean {close[0]}? " if close else ""
    raise UsageError(f"--level {level.strip()!r} is not known", f"{meant}Use one of {LEVEL_EXAMPLES}")


def read_request(options: SchemeOptions, presets: Sequence[str] = ()) -> SchemeRequest:
    """The preset, with explicit values over it."""
    request = read_level(options.level, presets) if options.level else SchemeRequest()
    explicit = {
        "bits": options.bits, "group_size": options.group_size, "act_order": options.act_order,
        "symmetric": options.symmetric,
    }  # fmt: skip
    given = {name: value for name, value in explicit.items() if value is not None}
    return replace(request, **given, activations=options.activations)  # type: ignore[arg-type]
