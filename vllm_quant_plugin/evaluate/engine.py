"""A vLLM engine that scores token windows one after the other."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm_quant_plugin.checkpoint import Checkpoint
from vllm_quant_plugin.console import suppress_output
from vllm_quant_plugin.errors import EngineDiedError, StartupError
from vllm_quant_plugin.writing import output_error, refusal_inside

_MIN_KV_BYTES = 64 << 20


def kv_cache_bytes(checkpoint: Checkpoint, tokens: int) -> int:
    """Room for ``tokens`` tokens of full attention in 16 bits, four times over and rounded up."""
    config = checkpoint.text_config
    heads = config.get("num_attention_heads") or 1
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or (config.get("hidden_size") or 0) // heads
    per_token = 2 * 2 * (config.get("num_hidden_layers") or 1) * kv_heads * head_dim
    return max(_MIN_KV_BYTES, 4 * per_token * tokens)


class Scorer:
    """The engine with the tap installed."""

    def __init__(self, llm: Any, sampling: Any) -> None:
        self._llm, self._sampling = llm, sampling

    def run(self, method: str, window: list[int], *args: Any) -> Any:
        """Send a window through the engine, then call ``method`` of the tap; returns the first rank's answer.

        Raises:
            EngineDiedError: vLLM failed.
            OutputError: a window's figures cannot be kept.
        """
        import torch

        try:
            # vLLM compiles the ranking of log-probabilities, which takes longer than all the rest.
            with torch.compiler.set_stance("force_eager"):
                self._llm.generate([{"prompt_token_ids": window}], self._sampling, use_tqdm=False)
            answers = self._llm.collective_rpc(method, args=(window, *args))
        except Exception as err:
            refused = refusal_inside(err)
            if refused is not None:
                raise output_error(refused, tempfile.gettempdir(), "TMPDIR names another folder") from None
            raise EngineDiedError(f"vLLM failed while scoring: {_reason(err)}", "--verbose shows its log") from err
        return next(answer for answer in answers if answer is not None)

    def call(self, method: str, *args: Any) -> None:
        """Call ``method`` of the tap on every rank."""
        self._llm.collective_rpc(method, args=args)

    @property
    def dtype(self) -> str:
        """What the engine computes in, e.g. ``bfloat16``."""
        return str(self._llm.llm_engine.model_config.dtype).removeprefix("torch.")

    def close(self) -> None:
        """Let the engine go. An engine collected later would take down the state of the next one."""
        self._llm = None


def _reason(error: Exception) -> str:
    """The most informative line of an exception: pydantic puts it in the middle, others at the end."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for line in lines:
        if line.startswith("Value error, "):
            return line.removeprefix("Value error, ").partition(" [type=")[0]
    return lines[-1] if lines else type(error).__name__


@contextmanager
def _without_kernels(names: str) -> Iterator[None]:
    """vLLM skips the linear kernels ``names`` (classes, separated by commas) in the block."""
    before = os.environ.get("VLLM_DISABLED_KERNELS")
    os.environ["VLLM_DISABLED_KERNELS"] = ",".join(filter(None, (before, names)))
    try:
        yield
    finally:
        if before is None:
            del os.environ["VLLM_DISABLED_KERNELS"]
        else:
            os.environ["VLLM_DISABLED_KERNELS"] = before


@contextmanager
def scoring_engine(checkpoint: Checkpoint, window_len: int, **options: Any) -> Iterator[Scorer]:
    """Start vLLM on a checkpoint during the block; its log is hidden.

    Args:
        options: vLLM engine arguments that win over the defaults here.

    Raises:
        StartupError: vLLM refuses the model.
    """
    # One process starts in seconds; several ranks need their own.
    if options.get("tensor_parallel_size", 1) == 1:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    arguments = {
        "model": str(checkpoint.path),
        "skip_tokenizer_init": True,
        "enforce_eager": True,
        "max_model_len": window_len + 1,
        "max_num_seqs": 1,
        "max_num_batched_tokens": max(window_len + 1, 256),
        "kv_cache_memory_bytes": kv_cache_bytes(checkpoint, window_len + 256),
        "enable_prefix_caching": False,
        "disable_log_stats": True,
        "seed": 0,
        "worker_extension_cls": "vllm_quant_plugin.evaluate.tap.LogitsTap",
        **options,
    }
    # vLLM collects garbage a dozen times per engine; what is there already need not be walked each time.
    gc.freeze()
    # This kernel claims 4-bit weights and then fails in float32.
    unable = "CPUWNA16LinearKernel" if arguments.get("dtype") == "float32" else ""
    with _without_kernels(unable), suppress_output():
        from vllm import LLM, SamplingParams
        from vllm.distributed import cleanup_dist_env_and_memory

        try:
            llm = LLM(**arguments)
        except Exception as err:
            raise StartupError(
                f"{checkpoint.path}: vLLM does not start: {_reason(err)}",
                "see `vllm-quant inspect`",
            ) from err
        scorer = Scorer(llm, SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1, detokenize=False))
        try:
            llm.collective_rpc("vqp_tap_install")
            yield scorer
        finally:
            scorer.close()
            del llm
            gc.collect()
            cleanup_dist_env_and_memory()
