"""Each method in a real `vllm serve` on a GPU: tokens compared with BF16, tokens per second beside in-tree methods.

    python benchmarks/gpu_serve.py MODEL [--quantize] [--json FILE] [--eager] [--tensor-parallel N] [--only TEXT]
    python benchmarks/gpu_serve.py MODEL --device cpu --requests 32 --eager

MODEL is a folder or Hub id of a 16-bit model. Online methods are served from it; with --quantize, checkpoints of
AWQ, GPTQ, FP8 and INT8 are made by `vllm-quant quantize` first and served by this plugin and in-tree. One server
after the other, all with the same flags. Greedy answers to PROMPTS are compared with the BF16 server's: the share
of equal leading tokens. Rates are measured with 64 output tokens per request, at concurrency 1 and 32.

The second form tests the servers, the comparison and the report on a CPU. Its rates say nothing about a GPU.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):",
    "Water boils at a temperature of",
    "In the beginning of the twentieth century,",
    "import json\n\ndef load(path):",
    "The three laws of motion say that",
    "A quick recipe for pancakes:",
    "SELECT name, count(*) FROM",
]
TOKENS, START_LIMIT = 64, 1200


@dataclass(frozen=True)
class Server:
    """One way to serve: flags after the model's name, and environment."""

    name: str
    model: str
    flags: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


OURS = {"VQP_CUDA_KERNELS": "1"}


def servers(model: str, checkpoints: dict[str, Path]) -> list[Server]:
    """BF16 first: the others are compared with it."""
    found = [
        Server("bf16", model),
        Server("in-tree fp8 online", model, ("--quantization", "fp8")),
        Server("vqp_int8 online", model, ("--quantization", "vqp_int8"), OURS),
        Server("vqp_fp8 online", model, ("--quantization", "vqp_fp8"), OURS),
        Server("vqp_fp8 online, w8a16", model, ("--quantization", "vqp_fp8"), {**OURS, "VQP_CUDA_FP8": "w8a16"}),
    ]
    for method, path in checkpoints.items():
        found.append(Server(f"vqp_{method}", str(path), ("--quantization", f"vqp_{method}"), OURS))
        found.append(Server(f"in-tree {method}", str(path)))
    return found


def quantized(model: str, folder: Path) -> dict[str, Path]:
    """A checkpoint of each method. A method whose library is absent is reported and skipped."""
    made = {}
    for method in ("awq", "gptq", "fp8", "int8"):
        target = folder / method
        command = [sys.executable, "-m", "vllm_quant_plugin", "quantize", model, "-m", method, "-o", str(target)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode == 0:
            made[method] = target
        else:
            print(f"{method}: no checkpoint was made: {(result.stderr or result.stdout).strip().splitlines()[-1]}")
    return made


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def post(port: int, prompt: str) -> list[str]:
    """The greedy continuation of ``prompt`` as its tokens' texts."""
    body = {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, "logprobs": 1}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions",
        json.dumps({**body, "model": "served"}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        return list(json.load(answer)["choices"][0]["logprobs"]["tokens"])


def wait_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + START_LIMIT
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except OSError:
            time.sleep(1)
    raise RuntimeError("did not start: " + " | ".join(log.read_text(errors="replace").splitlines()[-3:]))


def rate(port: int, at_once: int, requests: int) -> float:
    """Output tokens per second."""
    prompts = [f"{i}. {PROMPTS[i % len(PROMPTS)]}" for i in range(requests)]
    begin = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        tokens = sum(len(t) for t in pool.map(lambda p: post(port, p), prompts))
    return tokens / (time.perf_counter() - begin)


def measure(server: Server, flags: list[str], folder: Path, requests: int) -> dict[str, Any]:
    """Start the server, send prompts, time ``requests`` at concurrency 32, stop.

    Raises:
        RuntimeError: the server does not start.
    """
    port, log = free_port(), folder / "server.log"
    # The `vllm` command of this environment.
    command = [sys.executable, "-m", "vllm_quant_serve.server", "serve", server.model]
    command += ["--served-model-name", "served", "--port", str(port)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, *server.flags, *flags],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **server.environment},
            start_new_session=True,
        )
    try:
        wait_ready(process, port, log)
        answers = [post(port, prompt) for prompt in PROMPTS]
        rate(port, 32, requests // 4)  # graphs, caches
        alone, together = rate(port, 1, max(1, requests // 32)), rate(port, 32, requests)
        return {"answers": answers, "tokens_s_1": alone, "tokens_s_32": together}
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and every process that it started."""
    for signal_number, timeout in ((signal.SIGTERM, 60), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal_number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout)
            return


def agreement(answers: list[list[str]], expected: list[list[str]]) -> float:
    """The share of tokens before the first difference, over all prompts."""
    equal = 0
    for found, wanted in zip(answers, expected, strict=True):
        for a, b in zip(found, wanted, strict=True):
            if a != b:
                break
            equal += 1
    return equal / sum(len(wanted) for wanted in expected)


def skip_reason(device: str) -> str | None:
    """Why nothing can be served on this machine."""
    if device == "cuda" and subprocess.run(["sh", "-c", "nvidia-smi -L"], capture_output=True, check=False).returncode:
        return "no NVIDIA GPU here"
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="folder or Hub id of a 16-bit model")
    parser.add_argument("--quantize", action="store_true", help="also make and serve checkpoints of each method")
    parser.add_argument("--eager", action="store_true", help="without torch.compile and CUDA graphs")
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a dry run")
    parser.add_argument("--requests", type=int, default=256, help="number of requests at concurrency 32")
    parser.add_argument("--only", default="", help="servers whose name has this text, beside BF16's")
    parser.add_argument("--json", type=Path, help="where to write the results")
    arguments = parser.parse_args()
    reason = skip_reason(arguments.device)
    if reason:
        print(f"gpu_serve: {reason}: nothing was served", file=sys.stderr)
        return 69
    flags = ["--dtype", "bfloat16", "--max-model-len", "1024", "--tensor-parallel-size", str(arguments.tensor_parallel)]
    flags += ["--enforce-eager"] if arguments.eager else []
    flags += ["--kv-cache-memory-bytes", "256M"] if arguments.device == "cpu" else []  # else a share of all memory
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoints = quantized(arguments.model, folder) if arguments.quantize else {}
        expected: list[list[str]] | None = None
        chosen = servers(arguments.model, checkpoints)
        for server in chosen[:1] + [server for server in chosen[1:] if arguments.only in server.name]:
            try:
                result = measure(server, flags, folder, arguments.requests)
            except RuntimeError as error:
                rows.append({"server": server.name, "error": str(error)})
                print(f"{server.name:24} {error}", flush=True)
                continue
            answers = result.pop("answers")
            expected = answers if server is chosen[0] else expected
            # Without BF16's server there is nothing to compare with.
            share = None if expected is None else agreement(answers, expected)
            rows.append({"server": server.name, **result, "agreement": share})
            rates = f"{result['tokens_s_1']:8.0f} tokens/s alone, {result['tokens_s_32']:8.0f} of 32 at once"
            compared = "not compared" if share is None else f"{share:.0%} of tokens as BF16"
            print(f"{server.name:24} {rates}, {compared}", flush=True)
    if arguments.json:
        arguments.json.write_text(
            json.dumps(
                {"model": arguments.model, "device": arguments.device, "flags": flags, "servers": rows}, indent=1
            )
            + "\n"
        )
    return int(any("error" in row and row["server"].startswith("vqp") for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
