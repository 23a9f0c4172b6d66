"""A process that starts engines with two ranks, one after another, and stores their answers.

``python -m tests.support.ask_two_ranks METHOD FOLDER [METHOD FOLDER ...]`` writes FOLDER/answer.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tests.support.engines import ask


def main() -> None:
    words = sys.argv[1:]
    for method, name in zip(words[::2], words[1::2], strict=True):
        folder = Path(name)
        answer = ask(folder, quantization=method, tensor_parallel_size=2, distributed_executor_backend="mp")
        torch.save({"tokens": answer.tokens, "logits": answer.logits}, folder / "answer.pt")


if __name__ == "__main__":
    main()
