"""Decoding by the real vLLM engine on a CPU: the plugin's 4-bit weights beside in-tree BF16 and in-tree AWQ.

    python benchmarks/cpu_engine.py [--threads 1 2] [--vocabulary 32000] [--rounds 5] [--eager] [--profile]
                                    [--folder DIR] [--json FILE]

The model is a Llama-3.2-1B with random weights (llama_1b.py). With its own vocabulary of 128256, tied to the LM head,
each token reads 525 MB of 16-bit head beside 0.5 GB of 4-bit layers: no kernel makes that three times as fast as BF16.
The default of 32000 is Llama-2's and TinyLlama's; ``--quantized-head`` adds the plugin with a 4-bit LM head.

Every engine runs in a process of its own, with the same settings, as it does behind the server. All engines stay loaded
and take turns: a round is one request of --tokens tokens in each. The time of a step (one token) is the median over the
steps of a round. Reported are the median over the rounds and the minimum, which other processes disturbed least. The
first round warms up and does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llama_1b import VOCABULARIES, Shape, linears, write
from rich.console import Console
from rich.table import Table

PROMPT = 16


@dataclass(frozen=True)
class Case:
    """One engine: a checkpoint's format and vLLM's ``--quantization``."""

    name: str
    format: str
    quantization: str | None
    quantized_head: bool = False


OURS, BF16, AWQ = (
    Case("plugin W4", "awq", "vqp_awq"),
    Case("in-tree BF16", "bf16", None),
    Case("in-tree AWQ", "awq", None),
)
HEAD = Case("plugin W4, W4 head", "awq", "vqp_awq", True)
GOALS = ((BF16, 3.0), (AWQ, 2.0))


def start_engine(folder: Path, quantization: str | None, eager: bool) -> Any:
    from vllm import LLM

    return LLM(
        model=str(folder), quantization=quantization, dtype="bfloat16", skip_tokenizer_init=True, enforce_eager=eager,
        max_model_len=512, max_num_seqs=4, max_num_batched_tokens=512, kv_cache_memory_bytes=128 << 20,
        enable_prefix_caching=False, disable_log_stats=True, seed=0,
    )  # fmt: skip


def decode(llm: Any, tokens: int) -> list[float]:
    """Seconds of every step after the first token of one request."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    engine = llm.llm_engine
    engine.add_request(str(time.monotonic_ns()), {"prompt_token_ids": list(range(5, 5 + PROMPT))}, sampling)
    times, before = [], time.perf_counter()
    while engine.has_unfinished_requests():
        engine.step()
        now = time.perf_counter()
        times.append(now - before)
        before = now
    return times[1:]


def profile(llm: Any, tokens: int) -> list[dict[str, Any]]:
    """Share of each operator in the time of the decoding steps, largest first."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    with record(activities=[ProfilerActivity.CPU]) as found:
        seconds = sum(decode(llm, tokens))
    rows = sorted(found.key_averages(), key=lambda row: -row.self_cpu_time_total)[:12]
    return [
        {"op": row.key, "calls": row.count / tokens, "ms": row.self_cpu_time_total / 1e3 / tokens,
         "share": row.self_cpu_time_total / 1e6 / seconds}
        for row in rows
    ]  # fmt: skip


def serve_requests(folder: Path, quantization: str | None, eager: bool) -> None:
    """Worker: one JSON line for every line of stdin, ``decode N`` or ``profile N``."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever vLLM prints is not a reply
    llm = start_engine(folder, quantization, eager)
    replies.write("[]\n")
    for line in sys.stdin:
        what, tokens = line.split()
        replies.write(json.dumps((profile if what == "profile" else decode)(llm, int(tokens))) + "\n")


class Engine:
    """A worker process; ``ask`` waits for its answer."""

    def __init__(self, case: Case, folder: Path, threads: int, eager: bool, log: Path) -> None:
        environment = {
            **os.environ, "OMP_NUM_THREADS": str(threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "WARNING",
        }  # fmt: skip
        allocator = next(Path(sys.prefix).glob("lib/python3*/site-packages/vllm/libs/libtcmalloc*.so*"), None)
        if allocator:
            environment["LD_PRELOAD"] = str(allocator)  # as vLLM's own engine process has it
        command = [sys.executable, __file__, "--worker", str(folder), case.quantization or "none", str(int(eager))]
        self.case, self.log = case, log
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("w"), text=True
        )
        self.read()

    def read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.case.name} failed:\n{self.log.read_text()[-3000:]}")
        return json.loads(line)

    def ask(self, what: str, tokens: int) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what} {tokens}\n")
        self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


def weight_bytes(case: Case, vocabulary: int) -> int:
    """Bytes of weights that one token reads: the layers and the LM head."""
    layers = sum(n * k for _, n, k in linears())
    quantized = 4.25 / 8  # 4 bits, and per group of 128 a 16-bit scale and an 8-bit zero point, near enough
    head = vocabulary * 2048 * (quantized if case.quantized_head else 2)
    return int(layers * (2 if case.format == "bf16" else quantized) + head)


def measure(cases: list[Case], folders: dict[Case, Path], threads: int, options: Any, scratch: Path) -> dict[Case, Any]:
    """Seconds per token of every case in every round, and the profiles where they are wanted."""
    engines: list[Engine] = []
    try:
        for case in cases:
            engines.append(Engine(case, folders[case], threads, options.eager, scratch / f"{len(engines)}.log"))
        rounds: dict[Case, list[float]] = {case: [] for case in cases}
        for _ in range(options.rounds + 1):
            for engine in engines:
                rounds[engine.case].append(statistics.median(engine.ask("decode", options.tokens)))
        profiles = {e.case: e.ask("profile", options.tokens) for e in engines} if options.profile else {}
        return {case: {"seconds": found[1:], "profile": profiles.get(case)} for case, found in rounds.items()}
    finally:
        for engine in engines:
            engine.close()


def show(console: Console, found: dict[Case, Any], threads: int, vocabulary: int) -> None:
    table = Table(title=f"Decode, {threads} thread(s), vocabulary {vocabulary}")
    for column in ("", "ms/token", "minimum", "tokens/s", "weights GB", "GB/s of weights"):
        table.add_column(column, justify="right" if column else "left", no_wrap=not column)
    for case, result in found.items():
        middle, size = statistics.median(result["seconds"]), weight_bytes(case, vocabulary)
        table.add_row(
            case.name, f"{middle * 1e3:.1f}", f"{min(result['seconds']) * 1e3:.1f}", f"{1 / middle:.1f}",
            f"{size / 1e9:.2f}", f"{size / middle / 1e9:.1f}",
        )  # fmt: skip
    console.print(table)
    goals = Table(title="Goals: times as many tokens per second")
    for column in ("", "median", "least of both", "per round", "at least", "bytes alone give"):
        goals.add_column(column, justify="right" if column else "left", no_wrap=not column)
    for ours in (case for case in (OURS, HEAD) if case in found):
        for peer, goal in GOALS:
            if peer not in found:
                continue
            mine, theirs = found[ours]["seconds"], found[peer]["seconds"]
            each = sorted(t / m for m, t in zip(mine, theirs, strict=True))
            goals.add_row(
                f"{ours.name} over {peer.name}", f"{statistics.median(theirs) / statistics.median(mine):.2f}",
                f"{min(theirs) / min(mine):.2f}", f"{each[0]:.2f} to {each[-1]:.2f}", f"{goal:.1f}",
                f"{weight_bytes(peer, vocabulary) / weight_bytes(ours, vocabulary):.2f}",
            )  # fmt: skip
    console.print(goals)
    for case, result in found.items():
        if result["profile"]:
            rows = Table(title=f"{case.name}: where a step goes")
            for column in ("operator", "calls", "ms", "share"):
                rows.add_column(column, justify="right" if column != "operator" else "left")
            for row in result["profile"]:
                rows.add_row(row["op"], f"{row['calls']:.0f}", f"{row['ms']:.2f}", f"{row['share']:.0%}")
            console.print(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where checkpoints are kept; a temporary one by default")
    parser.add_argument("--vocabulary", type=int, choices=sorted(VOCABULARIES), default=32000)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=24, help="tokens of one request")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--quantized-head", action="store_true", help="add the plugin with a 4-bit LM head")
    parser.add_argument("--profile", action="store_true", help="print the time of each operator in a step")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        folder, quantization, eager = options.worker
        serve_requests(Path(folder), None if quantization == "none" else quantization, eager == "1")
        return
    cases = [OURS, BF16, AWQ] + ([HEAD] if options.quantized_head else [])
    report = []
    with tempfile.TemporaryDirectory() as scratch:
        root = options.folder or Path(scratch)
        folders = {c: write(Shape(c.format, options.vocabulary, c.quantized_head), root) for c in cases}
        for threads in options.threads:
            found = measure(cases, folders, threads, options, Path(scratch))
            show(Console(), found, threads, options.vocabulary)
            report += [{**asdict(case), "threads": threads, **result} for case, result in found.items()]
    if options.json:
        settings = {"vocabulary": options.vocabulary, "eager": options.eager, "cases": report}
        options.json.write_text(json.dumps(settings, indent=1) + "\n")


if __name__ == "__main__":
    main()
