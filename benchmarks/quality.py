"""Perplexity and KL divergence of every method, bit-width and group size on the bundled model, through vLLM.

python benchmarks/quality.py [--only PREFIX ...] [--limit-seconds S] [--scratch FOLDER]   measure what is missing
python benchmarks/quality.py --write     write the tables of docs/results/quality.md
python benchmarks/quality.py --check     check the claims of docs/results/quality.md; exit code 1 when one fails

Results are kept in benchmarks/results/quality.json, one row at a time; a stopped run resumes there.
Everything is computed in float32 on the first 48 windows of 256 tokens of two held-out texts. The originals' log
probabilities (1 GB) take minutes; with --scratch they are kept for the next run.
"""

from __future__ import annotations

import argparse
import json
import pickle
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.quality_table import check_claims, write_table  # noqa: E402
from vllm_quant_plugin.checkpoint import read_checkpoint  # noqa: E402
from vllm_quant_plugin.errors import VqpError  # noqa: E402
from vllm_quant_plugin.evaluate.api import Recording, evaluate_model, record_reference  # noqa: E402
from vllm_quant_plugin.formats import parse_quantization_config, plugin_method  # noqa: E402
from vllm_quant_plugin.quantize.api import make_recipe, quantize_model  # noqa: E402

BUNDLED = ROOT / "vllm_quant_plugin" / "data" / "stdlib-llama"
RESULTS = ROOT / "benchmarks" / "results" / "quality.json"
DOCUMENT = ROOT / "docs" / "results" / "quality.md"
WINDOWS = 48
CALIBRATION = {"samples": 32, "seq_len": 512}
Made = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        make: writes the artefact into a folder; returns further fields of the row.
        outliers: start from the model with outlier channels.
    """

    make: Callable[[Path, Path], Made]
    outliers: bool = False


def recipe_row(method: str, *, outliers: bool = False, **options: Any) -> Row:
    """A row of one recipe."""

    def make(source: Path, folder: Path) -> Made:
        measured = method in ("awq", "gptq") or {"smooth", "activations"} & options.keys()
        data = CALIBRATION if measured or options.get("backend") == "llmcompressor" else {}
        report = quantize_model(source, folder, make_recipe(method, **data, **options))
        return {"bits_per_weight": report.bits_per_weight, "seconds": report.seconds}

    return Row(make, outliers)


def target_row(method: str, bpw: float, **options: Any) -> Row:
    """A row of the mixed-precision search."""

    def make(source: Path, folder: Path) -> Made:
        from vllm_quant_plugin.quantize.mixed.api import Target, quantize_to_target

        recipe = make_recipe(method, **({} if method == "rtn" else CALIBRATION), **options)
        report = quantize_to_target(source, folder, recipe, Target(bpw))
        return {"bits_per_weight": report.bits_per_weight, "seconds": report.seconds, "mixed": report.mixed}

    return Row(make)


def rows() -> dict[str, Row]:
    """Every row by its name; the grid is asymmetric throughout, so that only the rounding differs."""
    found: dict[str, Row] = {}
    for bits in (3, 4, 2, 8):
        for group in (128, 64, 32):
            for method in ("rtn", "gptq", "awq"):
                found[f"{method}-{bits}bit-{group}g"] = recipe_row(method, level=f"{bits}bit-{group}g-asym")
    for method in ("rtn", "gptq"):
        found[f"{method}-mixed-3.5bpw"] = target_row(method, 3.5, level="3bit-64g-asym")
    for bits in (3, 4):
        found[f"rtn-{bits}bit-128g-sym"] = recipe_row("rtn", level=f"{bits}bit-128g-sym")
    for level in ("channel", "tensor", "block"):
        found[f"fp8-{level}"] = recipe_row("fp8", level=level)
    for level in ("W8A8", "W8A16"):
        found[f"int8-{level}"] = recipe_row("int8", level=level)
    return found | _outlier_rows() | _library_rows()


def _outlier_rows() -> dict[str, Row]:
    """On the model with outlier channels."""
    found = {
        f"{method}-3bit-128g (outliers)": recipe_row(method, level="3bit-128g-asym", outliers=True)
        for method in ("rtn", "awq", "gptq")
    }
    found["int8-W8A8 (outliers)"] = recipe_row("int8", outliers=True)
    found["int8-W8A8-smooth (outliers)"] = recipe_row("int8", smooth="search", outliers=True)
    return found


def _library_rows() -> dict[str, Row]:
    """RECIPE/LIBRARY: the library's result for the same recipe, and the builtin rows that only these need."""
    found: dict[str, Row] = {}
    for backend in ("gptqmodel", "autoawq"):
        found[f"awq-4bit-128g/{backend}"] = recipe_row("awq", level="4bit-128g", backend=backend)
    for bits in (3, 4, 2, 8):
        level = f"{bits}bit-128g-asym"
        found[f"gptq-{bits}bit-128g/gptqmodel"] = recipe_row("gptq", level=level, backend="gptqmodel")
    for bits in (3, 4, 8):
        level = f"{bits}bit-128g-sym"
        found[f"gptq-{bits}bit-128g-sym"] = recipe_row("gptq", level=level)
        found[f"gptq-{bits}bit-128g-sym/gptqmodel"] = recipe_row("gptq", level=level, backend="gptqmodel")
    eight: dict[str, dict[str, Any]] = {
        "int8-W8A8": {"method": "int8"},
        "fp8-channel": {"method": "fp8"},
        "fp8-static": {"method": "fp8", "activations": "static"},
        "int8-W8A8-smooth0.8 (outliers)": {"method": "int8", "smooth": 0.8, "outliers": True},
        "int8-W8A8-static-smooth0.8 (outliers)": {
            "method": "int8", "smooth": 0.8, "activations": "static", "outliers": True
        },
    }  # fmt: skip
    for name, options in eight.items():
        found[name] = recipe_row(**options)
        found[f"{name}/llmcompressor"] = recipe_row(**options, backend="llmcompressor")
    return found


def measure(folder: Path, recording: Recording) -> list[dict[str, Any]]:
    """Figures of an artefact per text, with the plugin's kernels wherever it has a method for them."""
    config = read_checkpoint(folder).quantization_config
    method = plugin_method(parse_quantization_config(config)) if config else None
    extra = {"quantization": method} if method else {}
    report = evaluate_model(folder, reference=recording, dtype="float32", **extra)
    return [
        {
            "text": t.text, "perplexity": t.perplexity, "kl": t.kl.mean, "median": t.kl.median, "p95": t.kl.p95,
            "p999": t.kl.p999, "top1": t.kl.top1_agreement,
        }
        for t in report.texts if t.kl is not None
    ]  # fmt: skip


def load_results() -> dict[str, Any]:
    return json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {"reference": {}, "rows": {}}


def save_results(results: dict[str, Any]) -> None:
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    temporary = RESULTS.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", "utf-8")
    temporary.replace(RESULTS)


class _Sources:
    """The two models and their recordings, made when first needed."""

    def __init__(self, scratch: Path, results: dict[str, Any]) -> None:
        self._scratch, self._results = scratch, results
        self._known: dict[bool, tuple[Path, Recording]] = {}

    def __call__(self, outliers: bool) -> tuple[Path, Recording]:
        if outliers not in self._known:
            model = BUNDLED
            if outliers:
                from tests.support.outlier_model import write_outlier_model

                model = self._scratch / "outliers"
                if not model.exists():
                    write_outlier_model(BUNDLED, model)
            self._known[outliers] = (model, self._recording(model, "outliers" if outliers else "bundled"))
        return self._known[outliers]

    def _recording(self, model: Path, known: str) -> Recording:
        folder = self._scratch / f"reference-{known}"
        kept = folder / "recording.pickle"
        if kept.exists():
            found: Recording = pickle.loads(kept.read_bytes())
            return found
        folder.mkdir(exist_ok=True)
        made = record_reference(
            model, folder, windows=WINDOWS, dtype="float32", noise=known not in self._results["reference"]
        )
        if made.noise:
            self._results["reference"][known] = {
                "noise": {t.name: t.noise.mean for t in made.texts if t.noise}, "between": made.noise,
            }  # fmt: skip
        kept.write_bytes(pickle.dumps(made))
        return made


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    """``kept``, or a temporary folder."""
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
        return
    with tempfile.TemporaryDirectory(prefix="vqp-quality-") as scratch:
        yield Path(scratch)


def run(only: list[str], limit: float | None, kept: Path | None = None) -> bool:
    """Measure missing rows within the time limit; True when none is left."""
    started, results = time.monotonic(), load_results()
    known = rows()
    wanted = {n: r for p in only or [""] for n, r in known.items() if n.startswith(p)}
    missing = {n: r for n, r in wanted.items() if n not in results["rows"]}
    with _folder(kept) as scratch:
        sources = _Sources(scratch, results)
        for name, row in missing.items():
            if limit is not None and time.monotonic() - started > limit:
                return False
            source, recording = sources(row.outliers)
            begun = time.monotonic()
            with tempfile.TemporaryDirectory(dir=scratch) as made:
                try:
                    fields = row.make(source, Path(made) / "out")
                    fields["texts"] = measure(Path(made) / "out", replace(recording))
                except VqpError as err:
                    print(f"{name}: {err}", flush=True)
                    continue
            results["rows"][name] = fields
            save_results(results)
            kl = ", ".join(f"{t['kl']:.5f}" for t in fields["texts"])
            took = f"{fields['seconds']:.0f} of {time.monotonic() - begun:.0f} s"
            print(f"{name}: {fields['bits_per_weight']:.2f} bits, KL {kl}, quantized in {took}", flush=True)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="rows whose names start with these, in this order")
    parser.add_argument(
        "--limit-seconds", type=float, help="start no further row after this time; the exit code is then 3"
    )
    parser.add_argument("--scratch", type=Path, help="keep the originals' log probabilities here")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/results/quality.md")
    parser.add_argument("--check", action="store_true", help="check the claims")
    arguments = parser.parse_args()
    if arguments.write:
        write_table(load_results(), DOCUMENT, rows())
    if arguments.check:
        failed = [line for ok, line in check_claims(load_results(), rows()) if not ok]
        print("\n".join(failed) or "all claims hold")
        return bool(failed)
    if not arguments.write:
        return 0 if run(arguments.only, arguments.limit_seconds, arguments.scratch) else 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
