"""Quantize a model in memory, convert it to another format, and measure the loss, all from Python.

Errors of this package are ``VqpError``, with the exit code that the command line uses.

python examples/quantize_convert_evaluate.py MODEL OUTPUT [--method awq|gptq|fp8|int8|rtn] [--to FORMAT] [--windows N]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM

from vllm_quant_plugin.api import convert, evaluate, quantize
from vllm_quant_plugin.errors import VqpError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("output", type=Path)
    parser.add_argument("--method", default="awq")
    parser.add_argument("--samples", type=int, help="calibration windows")
    parser.add_argument("--to", help="gptq, awq or compressed-tensors; without it nothing is converted")
    parser.add_argument("--windows", type=int, default=0, help="windows to evaluate; 0: none")
    options = parser.parse_args()

    # A folder or Hub id works too; a model in memory may have been modified or merged before.
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype="auto")
    report = quantize(model, options.output / "quantized", options.method, samples=options.samples)
    print(f"quantized: {report.bytes_before:,} -> {report.bytes_after:,} bytes")

    folder = options.output / "quantized"
    if options.to:
        other = convert(folder, options.output / "converted", options.to)
        print(f"converted: {other.modules} modules from {other.method_before} to {other.method_after}")
        folder = options.output / "converted"

    if options.windows:
        found = evaluate(folder, reference=options.model, windows=options.windows)
        for text in found.texts:
            print(f"{text.text}: perplexity {text.perplexity:.3f}")
            if text.kl is not None:
                print(f"{text.text}: mean KL from the original {text.kl.mean:.5f} nats per token")


if __name__ == "__main__":
    try:
        main()
    except VqpError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
