"""The planner against vLLM itself: weights, KV blocks and refusals for real configurations at many TP sizes.

For every config file and placement, vLLM (on the meta device, in one subprocess) builds the model and
its KV cache at pinned KV bytes; the planner computes the same from config.json alone. Writes the table of
docs/guide/planner.md (``--markdown``) and the recorded answers that the tests compare with (``--record``).

    python benchmarks/planner_accuracy.py [--only NAME ...] [--record FILE] [--recorded FILE] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vllm_quant_plugin.architecture.families import describe
from vllm_quant_plugin.architecture.placement import Placement
from vllm_quant_plugin.errors import NoFeasiblePlanError
from vllm_quant_plugin.formats import parse_quantization_config
from vllm_quant_serve.plan.exact.ask import ExactAnswer, ExactJob, ask_vllm
from vllm_quant_serve.plan.memory.kv import KvSettings, kv_layout
from vllm_quant_serve.plan.memory.weights import WeightModel
from vllm_quant_serve.plan.search.context import installed_version

CONFIGS = Path(__file__).parents[1] / "tests" / "serve" / "plan" / "configs"
KV_BYTES = 24 << 30
LENGTH = 8192
PLACEMENTS = ((1, 1), (2, 1), (3, 1), (4, 1), (8, 1), (16, 1), (2, 2), (1, 3))
# In-tree vLLM has no CPU kernel for these formats: the same model is compared in 16 bits.
# vLLM answers these with a limit of its CPU kernels, not of the model: they are left out.
CPU_ONLY = ("No Unquantized MoE backend", "integer modulo by zero")
# Sharded in the middle of a group: vLLM 0.32 accepts it on CPU and applies wrong scales; the planner refuses.
STRICTER = "is not a multiple of group"
NO_CPU_KERNEL = ("deepseek-v3", "kimi-k2", "gpt-oss-20b", "gpt-oss-120b", "qwen2.5-7b-gptq-int8")
# vLLM's modules of these import torchvision, which need not be installed; the models built here do not use it.
NEEDS_TORCHVISION = ("qwen3.5-27b-text", "qwen3.5-35b-a3b-text")


@dataclass(frozen=True)
class Comparison:
    """One config at one placement; ``vllm_error`` and ``refusal`` are the two sides' refusals."""

    name: str
    tp: int
    pp: int
    vllm_error: str
    refusal: str
    weights: int = 0
    vllm_weights: int = 0
    blocks: int = 0
    vllm_blocks: int = 0
    tokens: int = 0
    vllm_tokens: int = 0

    @property
    def equal(self) -> bool:
        if self.refusal and STRICTER in self.refusal:
            return True
        if self.vllm_error or self.refusal:
            return bool(self.vllm_error) == bool(self.refusal)
        return (self.blocks, self.tokens) == (self.vllm_blocks, self.vllm_tokens) and self.weight_error <= 0.005

    @property
    def weight_error(self) -> float:
        return abs(self.weights - self.vllm_weights) / self.vllm_weights if self.vllm_weights else 0.0


def load(name: str) -> dict[str, Any]:
    config = json.loads((CONFIGS / f"{name}.json").read_text())
    if name in NO_CPU_KERNEL:
        config.pop("quantization_config", None)
    return config


def length_of(config: dict[str, Any]) -> int:
    return min(LENGTH, config.get("max_position_embeddings") or config.get("max_target_positions") or LENGTH)


def planned(config: dict[str, Any], tp: int, pp: int, answer: ExactAnswer) -> dict[str, Any]:
    """The planner's side of a comparison, with the settings that vLLM's CPU platform chose."""
    try:
        arch = describe(config)
    except NoFeasiblePlanError as error:
        return {"refusal": error.message}
    stored = config.get("quantization_config")
    scheme = parse_quantization_config(stored) if stored else None
    weights, place = WeightModel(arch, scheme, 2), Placement(tp, pp)
    refusal = next(iter(weights.refusals(place)), "")
    if refusal or answer.error:
        return {"refusal": refusal}
    hybrid = any(cache.kind == "mamba" for cache in arch.caches)
    block_size = 128 if hybrid else answer.block_size  # vLLM reports the size after aligning it to the states
    settings = KvSettings(block_size=block_size, in_flight=answer.in_flight, state_itemsize=4)
    layout = kv_layout(arch.layers, tp, pp, settings)
    blocks = layout.blocks(KV_BYTES)
    found = weights.weights(place).parameters
    stage = max(range(pp), key=lambda i: abs(found[i] - answer.weights[i]) / answer.weights[i])
    return {
        "refusal": "", "weights": found[stage], "vllm_weights": answer.weights[stage], "blocks": blocks,
        "tokens": layout.tokens(blocks, length_of(config)),
    }  # fmt: skip


def compare(
    names: list[str], placements: tuple[tuple[int, int], ...], known: dict[tuple[str, int, int], ExactAnswer]
) -> tuple[list[Comparison], list[dict[str, Any]]]:
    """Ask vLLM for every name and placement without a known answer, and compare."""
    jobs, keys = [], []
    with tempfile.TemporaryDirectory() as root:
        for name in names:
            folder = Path(root) / name
            folder.mkdir()
            config = load(name)
            (folder / "config.json").write_text(json.dumps(config))
            for tp, pp in placements:
                keys.append((name, tp, pp))
                if not known:
                    jobs.append(ExactJob(str(folder), KV_BYTES, tp, pp, max_model_len=length_of(config),
                                         max_num_batched_tokens=2048))  # fmt: skip
        answers = known or dict(zip(keys, ask_vllm(jobs, timeout=3600), strict=True))
    found, record = [], []
    for name, tp, pp in keys:
        answer = answers.get((name, tp, pp))
        if answer is None or answer.error.startswith(CPU_ONLY):
            continue
        ours = planned(load(name), tp, pp, answer)
        found.append(Comparison(name, tp, pp, answer.error, **{"vllm_blocks": answer.blocks,
                                                              "vllm_tokens": answer.tokens, **ours}))  # fmt: skip
        kept = {
            k: v for k, v in asdict(answer).items() if k not in ("names", "concurrency", "dtype", "device", "buffers")
        }
        record.append({"name": name, "tp": tp, "pp": pp, **kept})
    return found, record


def recorded(path: Path) -> dict[tuple[str, int, int], ExactAnswer]:
    """vLLM's answers of an earlier run."""
    found = {}
    for row in json.loads(path.read_text())["answers"]:
        fields = {key: value for key, value in row.items() if key not in ("name", "tp", "pp")}
        found[row["name"], row["tp"], row["pp"]] = ExactAnswer(**{**fields, "weights": tuple(row["weights"])})
    return found


def table(found: list[Comparison]) -> str:
    """Markdown: one line per configuration."""
    lines = [
        "| configuration | placements | refused by both | worst weight error | KV blocks equal |",
        "|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(one.name for one in found):
        rows = [one for one in found if one.name == name]
        legal = [one for one in rows if not one.vllm_error]
        worst = max((one.weight_error for one in legal), default=0.0)
        equal = sum(one.blocks == one.vllm_blocks and one.tokens == one.vllm_tokens for one in legal)
        refused = sum(bool(one.vllm_error) and bool(one.refusal) for one in rows)
        lines.append(f"| {name} | {len(rows)} | {refused} | {100 * worst:.4f}% | {equal} of {len(legal)} |")
    return "\n".join(lines) + "\n"


def keep_record(path: Path, record: list[dict[str, Any]]) -> None:
    """Write the answers; those of other configurations are kept."""
    asked = {row["name"] for row in record}
    old = json.loads(path.read_text())["answers"] if path.exists() else []
    rows = sorted([*(row for row in old if row["name"] not in asked), *record], key=lambda row: row["name"])
    document = {"vllm": installed_version(), "kv_bytes": KV_BYTES, "answers": rows}
    path.write_text(json.dumps(document, indent=0) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="names of config files without .json")
    parser.add_argument("--record", type=Path, help="write vLLM's answers as JSON")
    parser.add_argument("--recorded", type=Path, help="compare with the answers of an earlier run, without vLLM")
    parser.add_argument("--markdown", type=Path, help="write the table")
    arguments = parser.parse_args()
    names = arguments.only or sorted(path.stem for path in CONFIGS.glob("*.json"))
    if not arguments.recorded and find_spec("torchvision") is None:
        names = [name for name in names if name not in NEEDS_TORCHVISION]
    found, record = compare(names, PLACEMENTS, recorded(arguments.recorded) if arguments.recorded else {})
    for one in found:
        if not one.equal:
            print(f"DIFFERENT {one}")
    legal = [one for one in found if not one.vllm_error and not one.refusal]
    both = sum(bool(one.vllm_error) and bool(one.refusal) for one in found)
    ours = sum(bool(one.refusal) and not one.vllm_error for one in found)
    errors = sorted(one.weight_error for one in legal)
    different = sum(not one.equal for one in found)
    print(f"{len(names)} configurations, {len(found)} placements, {len(legal)} legal; {different} differ")
    exact = sum(one.weights == one.vllm_weights for one in legal)
    same = sum((one.blocks, one.tokens) == (one.vllm_blocks, one.vllm_tokens) for one in legal)
    theirs = sum(bool(one.vllm_error) and not one.refusal for one in found)
    print(f"weights equal to the byte {exact}, KV blocks and tokens equal {same}")
    print(f"refused by both {both}, by the planner only {ours}, by vLLM only {theirs}")
    if errors:
        print(f"weights: mean absolute error {100 * sum(errors) / len(errors):.5f}%, worst {100 * errors[-1]:.5f}%")
    if arguments.record:
        keep_record(arguments.record, record)
    if arguments.markdown:
        arguments.markdown.write_text(table(found))


if __name__ == "__main__":
    main()
