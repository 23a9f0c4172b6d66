"""Random but legal model configurations, and the planner's answers for them compared with vLLM's own objects.

Each seed gives other configurations: families, head counts, tied embeddings, sliding mixtures, nested and bare configs,
experts with shared ones, KV-cache dtypes, and quantization with 16-bit first layers and mixed schemes. vLLM builds each
on the meta device for TP 1, 2, 4 and 8; weights and KV blocks must agree to the byte and both must refuse the same.

    python benchmarks/planner_generated.py --seed 1 --count 60 [--json FILE] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from planner_accuracy import KV_BYTES, Comparison
from planner_configs import generate

from vllm_quant_plugin.architecture.families import describe
from vllm_quant_plugin.architecture.placement import Placement
from vllm_quant_plugin.errors import VqpError
from vllm_quant_plugin.formats import parse_quantization_config
from vllm_quant_serve.plan.exact.ask import ExactAnswer, ExactJob, ask_vllm
from vllm_quant_serve.plan.memory.kv import KvSettings, kv_layout
from vllm_quant_serve.plan.memory.weights import WeightModel
from vllm_quant_serve.plan.search.context import installed_version

LENGTH = 2048
TP_SIZES = (1, 2, 4, 8)
# A limit of vLLM's CPU kernels, not of the model.
CPU_ONLY = "integer modulo by zero"


class Case(Comparison):
    """One configuration at one tensor-parallel size, as both sides answer."""

    @property
    def kind(self) -> str:
        """``equal``, ``refused`` by both, ``wrongly accepted``, ``wrongly refused`` or ``off``."""
        if self.refusal and self.vllm_error:
            return "refused"
        if self.refusal or self.vllm_error:
            return "wrongly refused" if self.refusal else "wrongly accepted"
        mine, theirs = (self.weights, self.blocks, self.tokens), (self.vllm_weights, self.vllm_blocks, self.vllm_tokens)
        return "equal" if mine == theirs else "off"


def planned(name: str, config: dict[str, Any], tp: int, kv_dtype: str | None, answer: ExactAnswer) -> Case:
    """The planner's answer from config.json alone, with the settings that vLLM's CPU platform chose."""
    try:
        arch = describe(config)
        stored = config.get("quantization_config")
        scheme = parse_quantization_config(stored) if stored else None
        weights, place = WeightModel(arch, scheme, 2), Placement(tp)
        refusal = next(weights.refusals(place), "")
    except VqpError as error:
        refusal = error.message
    if refusal or answer.error:
        return Case(name, tp, 1, answer.error, refusal)
    settings = KvSettings(dtype=kv_dtype or "auto", block_size=answer.block_size, in_flight=answer.in_flight)
    layout = kv_layout(arch.layers, tp, 1, settings)
    blocks = layout.blocks(KV_BYTES)
    found = weights.weights(place).parameters[0]
    return Case(name, tp, 1, "", "", found, answer.weights[0], blocks, answer.blocks,
                layout.tokens(blocks, LENGTH), answer.tokens)  # fmt: skip


Configs = Sequence[tuple[str, dict[str, Any], str | None]]


def answers_of(configs: Configs, root: Path, sizes: Sequence[int] = TP_SIZES) -> list[ExactAnswer]:
    """vLLM's answers for each configuration and size, in that order.

    Args:
        configs: name, config.json and ``--kv-cache-dtype``.
        root: where the configurations are written.
    """
    jobs = []
    for name, config, kv_dtype in configs:
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config, indent=1))
        for tp in sizes:
            jobs.append(ExactJob(str(folder), KV_BYTES, tp, max_model_len=LENGTH, max_num_batched_tokens=2048,
                                 kv_cache_dtype=kv_dtype, any_kernel=True))  # fmt: skip
    os.environ["VLLM_PLUGINS"] = ""  # vLLM's own methods, not this plugin's
    return list(ask_vllm(jobs, timeout=3600))


def compare(configs: Configs, answers: Sequence[ExactAnswer], sizes: Sequence[int] = TP_SIZES) -> list[Case]:
    """The planner's answers beside vLLM's."""
    keys = [(name, config, tp, kv_dtype) for name, config, kv_dtype in configs for tp in sizes]
    return [planned(*key, answer) for key, answer in zip(keys, answers, strict=True) if answer.error != CPU_ONLY]


def recorded(path: Path) -> list[ExactAnswer]:
    """vLLM's answers of an earlier run with the same seed and count."""
    return [answer_of(row) for row in json.loads(path.read_text())["answers"]]


def answer_of(row: str | list[Any]) -> ExactAnswer:
    """One answer as ``record`` keeps it."""
    return ExactAnswer(row) if isinstance(row, str) else ExactAnswer("", (row[0],), (), *row[1:])


def record(path: Path, answers: Sequence[ExactAnswer], seed: int, count: int) -> None:
    """Keep answers: an error, or weights, blocks, tokens, concurrency, block size, tokens in flight."""
    rows = [a.error or [a.weights[0], a.blocks, a.tokens, 0.0, a.block_size, a.in_flight] for a in answers]
    document = {"vllm": installed_version(), "seed": seed, "count": count, "answers": rows}
    path.write_text(json.dumps(document) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--json", type=Path, help="add the counts of this seed to a file")
    parser.add_argument("--recorded", type=Path, help="vLLM's answers: read where the file exists, else written")
    parser.add_argument("--keep", type=Path, help="write the configurations here")
    arguments = parser.parse_args()
    configs = generate(random.Random(arguments.seed), arguments.count)
    if arguments.recorded and arguments.recorded.exists():
        answers = recorded(arguments.recorded)
    else:
        with tempfile.TemporaryDirectory() as root:
            answers = answers_of(configs, arguments.keep or Path(root))
        if arguments.recorded:
            record(arguments.recorded, answers, arguments.seed, arguments.count)
    found = compare(configs, answers)
    kinds: dict[str, int] = {}
    for case in found:
        kinds[case.kind] = kinds.get(case.kind, 0) + 1
        if case.kind not in ("equal", "refused"):
            print(f"{case.kind.upper()} {json.dumps(asdict(case))}")
    print(f"seed {arguments.seed}: {len(configs)} configurations, {len(found)} placements: {kinds}")
    if arguments.json:
        old = json.loads(arguments.json.read_text()) if arguments.json.exists() else {"seeds": {}}
        old["vllm"] = installed_version()
        old["seeds"][str(arguments.seed)] = {"configurations": len(configs), "placements": len(found), **kinds}
        arguments.json.write_text(json.dumps(old, indent=1) + "\n")


if __name__ == "__main__":
    main()
