"""A process that starts engines with two ranks, one after another, and stores their answers.

``python -m tests.support.ask_two_ranks OPTIONS FOLDER [OPTIONS FOLDER ...]`` writes FOLDER/answer.pt.
OPTIONS are engine arguments as JSON.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from pathlib import Path

import torch
from vllm.v1.executor import multiproc_executor

from tests.support.engines import ask


def main() -> None:
    words = sys.argv[1:]
    # vLLM spawns the workers of a CPU engine, which import everything again: 12 s of a core each.
    # This process has not computed anything yet, so it can be forked.
    multiproc_executor.get_mp_context = lambda: multiprocessing.get_context("fork")
    for options, name in zip(words[::2], words[1::2], strict=True):
        folder = Path(name)
        answer = ask(folder, **json.loads(options), tensor_parallel_size=2, distributed_executor_backend="mp")
        torch.save({"tokens": answer.tokens, "logits": answer.logits}, folder / "answer.pt")


if __name__ == "__main__":
    main()
