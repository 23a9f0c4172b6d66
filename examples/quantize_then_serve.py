"""Quantize a model folder, then serve it and send it prompts.

python examples/quantize_then_serve.py MODEL OUTPUT [--method awq|gptq|fp8|int8] [vllm serve flags]
"""

from __future__ import annotations

import argparse
import sys

from vllm_quant_plugin.errors import VqpError
from vllm_quant_plugin.quantize.api import make_recipe, quantize_model
from vllm_quant_serve.client import send_burst
from vllm_quant_serve.local_server import LocalServer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("output")
    parser.add_argument("--method", default="awq")
    parser.add_argument("--samples", type=int, help="calibration windows")
    own, serve_flags = parser.parse_known_args()

    report = quantize_model(own.model, own.output, make_recipe(own.method, samples=own.samples), overwrite=True)
    print(f"{report.bytes_before:,} -> {report.bytes_after:,} bytes, {report.bits_per_weight:.2f} bits per weight")

    with LocalServer(own.output, serve_flags) as server:
        print(server.event("command")["message"])
        burst = send_burst(
            f"{server.url}/v1", server.event("ready")["model"], ["def main(", "import os"], max_tokens=32
        )
        for completion in burst.completions:
            print(f"{completion.prompt!r} -> {completion.text!r}")
        print(f"{burst.tokens_per_second:.0f} tokens/s")
    print(server.event("stopped")["message"])


# vLLM's engines are separate processes that import this file again.
if __name__ == "__main__":
    try:
        main()
    except VqpError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
