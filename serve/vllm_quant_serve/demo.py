"""``vllm-quant demo``: quantize, measure, plan, serve and query a real model, in minutes and on any machine."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import vllm_quant_plugin
from vllm_quant_plugin.console import Verbose
from vllm_quant_plugin.sizes import format_size

if TYPE_CHECKING:
    from rich.console import Console

    from vllm_quant_serve.client import Burst

BUNDLED = Path(vllm_quant_plugin.__file__).parent / "data" / "stdlib-llama"
PROMPTS = (
    "def read_config(path):\n    ",
    "class LinkedList:\n    def __init__(self",
    "import json\nimport os\n\n\ndef main(",
    "Returns the number of",
    "The following options are",
    "    for index, value in enumerate(",
    "If the file does not exist,",
    "try:\n    import",
)
MAX_TOKENS = 64
# Less text than the default: a small model needs little for its search, and the demo should take minutes.
CALIBRATION: dict[str, Any] = {"samples": 32, "seq_len": 256}
WINDOWS = 12
WINDOW_LEN = 256


@dataclass
class Artefact:
    """One quantized model of the demo."""

    name: str
    path: str
    nbytes: int
    bits_per_weight: float
    seconds: float
    perplexity: dict[str, float] = field(default_factory=dict)
    kl: dict[str, float] = field(default_factory=dict)


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the quantized models.")] = Path("out/demo"),
    as_json: Annotated[bool, typer.Option("--json", help="Print every figure as one JSON document.")] = False,
    verbose: Verbose = False,
) -> None:
    """The whole path on the bundled model: quantize, measure, plan, serve, query, stop."""
    from rich.console import Console

    begin = time.monotonic()
    console = Console(quiet=as_json, highlight=False, soft_wrap=True)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    original = sum(file.stat().st_size for file in BUNDLED.glob("*.safetensors"))
    console.print(f"[bold]1. quantize[/] the bundled model: {BUNDLED.name}, BF16, {format_size(original)}")
    made = [
        _quantize("AWQ 4-bit", "awq", output / "awq", {"bits": 4, **CALIBRATION}, console),
        _quantize("INT8", "int8", output / "int8", {}, console),
    ]
    console.print(f"[bold]2. measure[/] through vLLM, {WINDOWS} windows of {WINDOW_LEN} tokens of each held-out text")
    base = _measure(made, console)
    console.print("[bold]3. plan and serve[/] the AWQ model")
    served = _serve(made[0].path, console)
    seconds = time.monotonic() - begin
    document = {
        "original": {"path": str(BUNDLED), "nbytes": original, "perplexity": base},
        "quantized": [asdict(artefact) for artefact in made],
        "served": served,
        "seconds": round(seconds, 1),
    }
    if as_json:
        print(json.dumps(document, indent=2))
    console.print(f"[bold]done[/] in {seconds:.0f} s; the models are in {output}/")
    console.print(f"next: vllm-quant serve {made[0].path}   or your own: vllm-quant quantize MODEL -m awq -o OUT")


def _quantize(name: str, method: str, output: Path, options: dict[str, Any], console: Console) -> Artefact:
    import torch

    from vllm_quant_plugin.console import progress_bar, suppress_output
    from vllm_quant_plugin.quantize.api import make_recipe, quantize_model

    threads = torch.get_num_threads()
    # Matrices this small gain nothing from a second thread, and on a busy machine waiting threads spin.
    torch.set_num_threads(1)
    try:
        with progress_bar(f"  {name}", enabled=not console.quiet) as progress, suppress_output():
            report = quantize_model(BUNDLED, output, make_recipe(method, **options), overwrite=True, progress=progress)
    finally:
        torch.set_num_threads(threads)
    console.print(
        f"   {name:10} {format_size(report.bytes_before)} -> {format_size(report.bytes_after)}, "
        f"{report.bits_per_weight:.2f} bits per weight, {report.seconds:.0f} s"
    )
    return Artefact(name, str(output), report.bytes_after, report.bits_per_weight, report.seconds)


def _measure(made: list[Artefact], console: Console) -> dict[str, float]:
    """Perplexity and KL of each artefact against BF16; returns the perplexities of BF16."""
    from rich.table import Table

    from vllm_quant_plugin.console import progress_bar, suppress_output
    from vllm_quant_plugin.evaluate.api import evaluate_model

    base: dict[str, float] = {}
    for artefact in made:
        with progress_bar(f"  {artefact.name} against BF16", enabled=not console.quiet) as progress, suppress_output():
            report = evaluate_model(
                artefact.path, reference=BUNDLED, windows=WINDOWS, window_len=WINDOW_LEN, progress=progress
            )
        for found in report.texts:
            artefact.perplexity[found.text] = found.perplexity
            if found.reference_perplexity is not None:
                base[found.text] = found.reference_perplexity
            if found.kl is not None:
                artefact.kl[found.text] = found.kl.mean
    table = Table(box=None, padding=(0, 2), title=None)
    table.add_column("")
    for text in base:
        table.add_column(f"perplexity, {text}", justify="right")
        table.add_column("KL, nats", justify="right")
    table.add_row("BF16", *[cell for text in base for cell in (f"{base[text]:.2f}", "")])
    for artefact in made:
        perplexity, kl = artefact.perplexity, artefact.kl
        row = [cell for text in base for cell in (f"{perplexity[text]:.2f}", f"{kl.get(text, 0):.4f}")]
        table.add_row(artefact.name, *row)
    console.print(table)
    return base


def _serve(model: str, console: Console) -> dict[str, Any]:
    import httpx

    from vllm_quant_serve.client import send_burst
    from vllm_quant_serve.local_server import LocalServer

    # By flag: in-tree vLLM serves this checkpoint, so the plugin does not claim it.
    flags = ["--quantization", "vqp_awq", "--max-model-len", "512", "--max-num-seqs", str(len(PROMPTS))]
    flags += ["--enforce-eager", "--no-admin"]
    with LocalServer(model, flags) as server:
        console.print(f"   {server.event('plan')['message']}", markup=False)
        console.print(f"   {server.event('command')['message']}", markup=False)
        console.print(f"   {server.event('ready')['message']}", markup=False)
        console.print(f"[bold]4. query[/]: {len(PROMPTS)} requests at once through the OpenAI client")
        name = server.event("ready")["model"]
        send_burst(f"{server.url}/v1", name, PROMPTS[:1], max_tokens=8)
        burst = send_burst(f"{server.url}/v1", name, PROMPTS, max_tokens=MAX_TOKENS)
        _show_burst(burst, console)
        exposition = httpx.get(f"{server.url}/metrics", timeout=30).text
        metrics = [line for line in exposition.splitlines() if line.startswith("vqp_")]
        console.print("[bold]5. metrics[/] of the plugin, in vLLM's own /metrics")
        for line in metrics:
            console.print(f"   {line}", markup=False)
    console.print(f"   {server.event('stopped')['message']} (exit code {server.exit_code})", markup=False)
    return {
        "plan": server.event("plan")["plan"],
        "command": server.event("command")["message"],
        "load_seconds": server.event("ready")["load_seconds"],
        "tokens_per_second": burst.tokens_per_second,
        "completions": [asdict(completion) for completion in burst.completions],
        "metrics": metrics,
        "exit_code": server.exit_code,
    }


def _show_burst(burst: Burst, console: Console) -> None:
    tokens = sum(completion.tokens for completion in burst.completions)
    slowest = max(completion.first_token for completion in burst.completions)
    example = burst.completions[0]
    console.print(
        f"   {tokens} tokens in {burst.seconds:.1f} s: [bold]{burst.tokens_per_second:.0f} tokens/s[/], "
        f"slowest first token after {slowest * 1000:.0f} ms"
    )
    console.print(f"   e.g. {example.prompt.strip()!r} -> {example.text[:90]!r}", markup=False)
