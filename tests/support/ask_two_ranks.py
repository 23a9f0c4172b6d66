"""A process that starts an engine with two ranks and stores its answer: ``FOLDER METHOD OUT``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tests.support.engines import ask


def main() -> None:
    folder, method, out = sys.argv[1:]
    answer = ask(Path(folder), quantization=method, tensor_parallel_size=2, distributed_executor_backend="mp")
    torch.save({"tokens": answer.tokens, "logits": answer.logits}, out)


if __name__ == "__main__":
    main()
