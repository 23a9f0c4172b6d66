"""One question put to a vLLM engine in the test's own process: greedy tokens and all logits."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from vllm_quant_plugin.formats import Host

# Lengths on both sides of the kernels' row blocks; token ids below every test model's vocabulary.
PROMPTS = tuple([(37 * i + 5 * n) % 251 for i in range(n)] for n in (1, 2, 3, 5, 9, 17, 33))
STEPS = 8


@dataclass(frozen=True)
class Answer:
    """What an engine says to ``PROMPTS``.

    Attributes:
        tokens: greedy continuation of each prompt.
        logits: per prompt, float32 (T, V): the logits after each token but the last, prompt and
            continuation, in order.
    """

    tokens: list[list[int]]
    logits: list[torch.Tensor]

    def choices(self) -> list[torch.Tensor]:
        """Per prompt, the most likely token after each position."""
        return [part.argmax(dim=-1) for part in self.logits]

    def sequences(self) -> list[list[int]]:
        """The token sequences that ``logits`` belong to."""
        return [[*prompt, *tokens[:-1]] for prompt, tokens in zip(PROMPTS, self.tokens, strict=True)]

    def scale(self) -> float:
        """Largest magnitude of a logit."""
        return max(float(part.abs().max()) for part in self.logits)


def engine_args(folder: Path, **options: Any) -> dict[str, Any]:
    """Arguments of a small, quick, deterministic engine that reports every logit."""
    return {
        "model": str(folder),
        "dtype": "float32",
        "skip_tokenizer_init": True,
        "enforce_eager": True,
        "kv_cache_memory_bytes": 8 << 20,
        "max_model_len": 64,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "max_logprobs": -1,
        "logprobs_mode": "raw_logits",
        "enable_prefix_caching": False,
        "disable_log_stats": True,
        "seed": 0,
        **options,
    }


def _row(entries: dict[int, Any]) -> torch.Tensor:
    row = torch.full((len(entries),), float("nan"))
    for token, entry in entries.items():
        row[token] = entry.logprob
    return row


def ask_engine(llm: Any) -> Answer:
    """The answer of a running engine."""
    from vllm import SamplingParams

    sampling = SamplingParams(
        temperature=0, max_tokens=STEPS, logprobs=-1, prompt_logprobs=-1, ignore_eos=True, detokenize=False
    )
    tokens, logits = [], []
    # vLLM compiles the function that ranks log-probabilities, which takes longer than all the rest.
    compiled = llm.llm_engine.vllm_config.compilation_config.mode
    with nullcontext() if compiled else torch.compiler.set_stance("force_eager"):
        outputs = llm.generate([{"prompt_token_ids": p} for p in PROMPTS], sampling, use_tqdm=False)
    for output in outputs:
        rows = [_row(entries) for entries in (output.prompt_logprobs or [])[1:]]
        rows += [_row(entries) for entries in output.outputs[0].logprobs]
        tokens.append(list(output.outputs[0].token_ids))
        logits.append(torch.stack(rows))
    return Answer(tokens, logits)


_started = itertools.count(1)


@contextmanager
def _quick_collections() -> Iterator[None]:
    """Keep garbage collection off what the process held before.

    vLLM collects garbage several times per engine, each time walking the half million objects that
    its imports leave: longer than everything else that a small engine does. Frozen ones are not
    walked. Every tenth time all are thawed, so that dead engines are freed.
    """
    gc.freeze()
    if next(_started) % 10 == 0:
        yield
    else:
        with mock.patch.object(gc, "unfreeze"):
            yield


@contextmanager
def engine(folder: Path, **options: Any) -> Iterator[Any]:
    """A running ``LLM`` on ``folder``; whatever happens, the next one finds a clean process."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    with _quick_collections():
        llm = None
        try:
            try:
                llm = LLM(**engine_args(folder, **options))
            except NotImplementedError as error:
                # vLLM's FP8 KV cache; on a CPU with AVX-512 this is a failure.
                if "requires x86 with AVX-512" in str(error) and Host.local("cpu").lacks_avx512:
                    pytest.skip(str(error))
                raise
            yield llm
        finally:
            if llm is not None:
                # Now: the engine's own finalizer would run after the caller's frame, with everything thawed.
                llm.llm_engine.engine_core.shutdown()
            # It cleans up, unless it failed half way.
            if torch.distributed.is_initialized():
                cleanup_dist_env_and_memory()


def ask(folder: Path, **options: Any) -> Answer:
    """Start an engine on ``folder``, ask, and let it go."""
    with engine(folder, **options) as llm:
        return ask_engine(llm)
