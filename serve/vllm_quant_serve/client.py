"""Concurrent requests through the OpenAI client, measured: what the demo and the examples send."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from vllm_quant_plugin.errors import BackendError


@dataclass(frozen=True)
class Completion:
    """One finished request; times in seconds."""

    prompt: str
    text: str
    tokens: int
    first_token: float
    seconds: float


@dataclass(frozen=True)
class Burst:
    """Requests that ran at the same time."""

    completions: tuple[Completion, ...]
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return sum(completion.tokens for completion in self.completions) / self.seconds


async def _complete(client: object, model: str, prompt: str, max_tokens: int) -> Completion:
    begin = time.monotonic()
    first: float | None = None
    parts: list[str] = []
    tokens = 0
    stream = await client.completions.create(  # type: ignore[attr-defined]
        model=model, prompt=prompt, max_tokens=max_tokens, temperature=0.8, seed=0, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    async for chunk in stream:
        if chunk.choices:
            first = time.monotonic() - begin if first is None else first
            parts.append(chunk.choices[0].text)
        if chunk.usage is not None:
            tokens = chunk.usage.completion_tokens
    seconds = time.monotonic() - begin
    return Completion(prompt, "".join(parts), tokens, seconds if first is None else first, seconds)


def send_burst(url: str, model: str, prompts: Sequence[str], *, max_tokens: int = 64, timeout: float = 120.0) -> Burst:
    """Send all prompts at once to ``url`` (ending in ``/v1``) as streamed completions.

    Raises:
        BackendError: the ``openai`` package is missing.
    """
    try:
        from openai import AsyncOpenAI
    except ImportError:
        raise BackendError("the openai package is not installed", "pip install openai") from None

    async def run() -> Burst:
        async with AsyncOpenAI(base_url=url, api_key="unused", timeout=timeout, max_retries=0) as client:
            begin = time.monotonic()
            done = await asyncio.gather(*(_complete(client, model, prompt, max_tokens) for prompt in prompts))
            return Burst(tuple(done), time.monotonic() - begin)

    return asyncio.run(run())
