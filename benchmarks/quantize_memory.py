"""Peak resident memory of whole runs on synthetic checkpoints, beside the bound.

    python benchmarks/quantize_memory.py --shape 8b -m int8 -m fp8       # 16 GB of BF16, methods without data
    python benchmarks/quantize_memory.py --shape 8b-layer -m gptq        # one layer of it, with data: minutes
    python benchmarks/quantize_memory.py --shape 1b -m gptq -m awq       # two layers of a 1B model, with data: long
    python benchmarks/quantize_memory.py --shape 300m -m gptq -m awq     # two layers of a smaller one: minutes

The bound: three times the largest decoder layer in FP32, the hidden states of the calibration windows, and 2 GB. The
checkpoint holds random weights; it and the outputs are deleted. Each method runs in a process of its own, whose
highest resident memory, mapped file pages included, the kernel reports at its end (``VmHWM``). With ``--keep FOLDER``
the checkpoint is written there once and kept, so that the methods can be run one by one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from vllm_quant_plugin.text.windows import BUNDLED

ALLOWANCE = 2_000_000_000
# The last file of a checkpoint that is written.
INDEX = "model.safetensors.index.json"
_PROGRAM = "import sys; from vllm_quant_plugin.cli import main; main(sys.argv[1:])"


@dataclass(frozen=True)
class Shape:
    """A Llama: sizes as in config.json, and how many layers to write."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    layers: int

    def config(self) -> dict[str, object]:
        config = json.loads((BUNDLED / "config.json").read_text())
        return {
            **config, "hidden_size": self.hidden, "intermediate_size": self.intermediate,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "vocab_size": self.vocab,
            "num_hidden_layers": self.layers, "head_dim": self.hidden // self.heads, "tie_word_embeddings": False,
        }  # fmt: skip

    def layer(self) -> dict[str, tuple[int, ...]]:
        """Tensor shapes of one decoder layer."""
        h, m, kv = self.hidden, self.intermediate, self.hidden // self.heads * self.kv_heads
        return {
            "self_attn.q_proj": (h, h), "self_attn.k_proj": (kv, h), "self_attn.v_proj": (kv, h),
            "self_attn.o_proj": (h, h), "mlp.gate_proj": (m, h), "mlp.up_proj": (m, h), "mlp.down_proj": (h, m),
            "input_layernorm": (h,), "post_attention_layernorm": (h,),
        }  # fmt: skip

    def promised(self, tokens: int) -> int:
        """Bytes."""
        layer = sum(torch.Size(shape).numel() for shape in self.layer().values())
        return 3 * 4 * layer + 4 * tokens * self.hidden + ALLOWANCE


SHAPES = {
    "8b": Shape(4096, 14336, 32, 8, 128256, 32),
    "8b-layer": Shape(4096, 14336, 32, 8, 8192, 1),
    "1b": Shape(2048, 8192, 32, 8, 128256, 2),
    "300m": Shape(1024, 4096, 16, 8, 128256, 2),
}


def _random(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """BF16 with random sign and mantissa and magnitudes of 2**-7 to 2**-3: quick to generate, and like weights."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    bits = torch.randint(-(1 << 15), 1 << 15, shape, generator=generator, dtype=torch.int16)
    # Sign, mantissa and the two low bits of the exponent are random; the rest of the exponent is 0b011110xx.
    return ((bits & ~0x7E00) | 0x3C00).view(torch.bfloat16)


def write_checkpoint(folder: Path, shape: Shape) -> None:
    """Write the checkpoint in files of four layers."""
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(BUNDLED / name, folder / name)
    (folder / "config.json").write_text(json.dumps(shape.config()))
    generator, weight_map = torch.Generator().manual_seed(0), {}
    names: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens", (shape.vocab, shape.hidden))]
    parts = [names]
    for index in range(shape.layers):
        if index % 4 == 0:
            parts.append([])
        parts[-1] += [(f"model.layers.{index}.{name}", size) for name, size in shape.layer().items()]
    parts.append([("model.norm", (shape.hidden,)), ("lm_head", (shape.vocab, shape.hidden))])
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        tensors = {f"{name}.weight": _random(size, generator) for name, size in part}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def apart(work: Callable[[], object]) -> None:
    """Run ``work`` in a process of its own, so that its memory is not counted here."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise SystemExit("the checkpoint cannot be written")


def run(model: Path, output: Path, flags: list[str]) -> dict[str, Any]:
    """Quantize in a process of its own; returns its report."""
    command = [sys.executable, "-c", _PROGRAM, "quantize", str(model), "-o", str(output), "--json", "--no-eval", *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"quantize {' '.join(flags)} failed")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("-m", "--method", action="append", required=True)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--folder", type=Path, help="a folder with enough space (default: the temporary folder)")
    parser.add_argument(
        "--keep", type=Path, help="the checkpoint's folder; the checkpoint is written if missing, and kept"
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    shape, rows = SHAPES[options.shape], []
    with tempfile.TemporaryDirectory(prefix="vqp-memory-", dir=options.folder) as scratch:
        model = options.keep or Path(scratch) / "model"
        if not (model / INDEX).exists():
            apart(lambda: write_checkpoint(model, shape))
        for method in options.method:
            data = method in ("awq", "gptq")
            flags = ["-m", method]
            if data:
                flags += ["--calibration-samples", str(options.samples), "--seq-len", str(options.seq_len)]
            report = run(model, Path(scratch) / "out", flags)
            promised = shape.promised(options.samples * options.seq_len if data else 0)
            row = {
                "shape": options.shape, "method": method, "bytes_before": report["bytes_before"],
                "bytes_after": report["bytes_after"], "resident": report["peak_memory_bytes"], "promised": promised,
                "seconds": report["seconds"],
            }  # fmt: skip
            rows.append(row)
            print(json.dumps(row), flush=True)
            shutil.rmtree(Path(scratch) / "out")
    table = Table("shape", "method", "in GB", "out GB", "peak GB", "promised GB", "s")
    for row in rows:
        figures = [f"{float(row[k]) / 1e9:.2f}" for k in ("bytes_before", "bytes_after", "resident", "promised")]
        table.add_row(row["shape"], row["method"], *figures, f"{row['seconds']:.0f}")
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    if any(row["resident"] > row["promised"] for row in rows):
        raise SystemExit("the peak exceeds the bound")


if __name__ == "__main__":
    main()
