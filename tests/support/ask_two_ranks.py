"""A process that starts engines with two ranks, one after another, and stores their answers.

``python -m tests.support.ask_two_ranks OPTIONS FOLDER [OPTIONS FOLDER ...]`` writes FOLDER/answer.pt.
OPTIONS are engine arguments as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from tests.support.engines import ask


def main() -> None:
    words = sys.argv[1:]
    for options, name in zip(words[::2], words[1::2], strict=True):
        folder = Path(name)
        answer = ask(folder, **json.loads(options), tensor_parallel_size=2, distributed_executor_backend="mp")
        torch.save({"tokens": answer.tokens, "logits": answer.logits}, folder / "answer.pt")


if __name__ == "__main__":
    main()
