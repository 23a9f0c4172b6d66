"""Why a server did not start, read from its log.

The patterns are vLLM's and PyTorch's own messages; ``tests/serve/supervise/test_failures.py`` holds them
against the sources of the installed vLLM, so that a reworded message is noticed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from vllm_quant_serve.server import SUGGESTION


class Cause(Enum):
    """Classes of start-up failures."""

    KV_CACHE = "kv-cache-memory"
    MEMORY = "device-memory"
    HOST_MEMORY = "host-memory"
    SHARED_MEMORY = "shared-memory"
    HEADS = "divisibility"
    PORT = "port"
    WEIGHTS = "weights"
    DEVICE = "device"
    FLAGS = "flags"
    CONFIG = "config"
    QUANTIZATION = "quantization"
    UNKNOWN = "unknown"

    @property
    def is_memory(self) -> bool:
        """Whether smaller memory demands may help."""
        return self in (Cause.KV_CACHE, Cause.MEMORY, Cause.HOST_MEMORY)

    @property
    def is_usage(self) -> bool:
        """Whether the user's flags have to change before anything can be loaded."""
        return self in (Cause.FLAGS, Cause.CONFIG, Cause.QUANTIZATION)


HINTS = {
    Cause.KV_CACHE: "lower --max-model-len or --concurrency, raise --gpu-memory-utilization, or add devices",
    Cause.MEMORY: "free the device, lower --gpu-memory-utilization or --max-num-seqs, or quantize to fewer bits",
    Cause.HOST_MEMORY: "free host memory, lower --kv-cache-memory-bytes, or raise the container's limit",
    Cause.SHARED_MEMORY: "give the container more /dev/shm (docker run --ipc=host or --shm-size=8g)",
    Cause.HEADS: "choose another --tensor-parallel-size; `vllm-quant plan` lists the legal ones",
    Cause.PORT: "choose another --port, or stop the process that holds it",
    Cause.WEIGHTS: "check the model folder or Hub id; `vllm-quant inspect` reads it without loading it",
    Cause.DEVICE: "check `nvidia-smi`, the driver's version and CUDA_VISIBLE_DEVICES, or install the CPU build",
    Cause.FLAGS: "`vllm serve --help=all` lists vLLM's flags, `vllm-quant serve --help` this command's own",
    Cause.CONFIG: "vLLM checks this before it loads anything: change the flag, or the model's config.json",
    Cause.QUANTIZATION: "`vllm-quant inspect` names the --quantization that reads this checkpoint",
    Cause.UNKNOWN: "its log says more",
}

# The first match wins, so specific messages come before general ones.
PATTERNS: tuple[tuple[Cause, str], ...] = (
    (Cause.KV_CACHE, r"No available memory for the cache blocks"),
    (Cause.KV_CACHE, r"To serve at least one request with the model's max seq len"),
    (Cause.MEMORY, r"Free memory on device .* is less than"),
    (Cause.MEMORY, r"CUDA out of memory|torch\.OutOfMemoryError|HIP out of memory"),
    (Cause.HOST_MEMORY, r"Available memory on node .* is less than"),
    (Cause.HOST_MEMORY, r"can't allocate memory|Cannot allocate memory|MemoryError"),
    (Cause.SHARED_MEMORY, r"No space left on device.*shm|unable to (open|write to|mmap|resize).*(shm|shared memory)"),
    (Cause.SHARED_MEMORY, r"Bus error"),
    (Cause.HEADS, r"Total number of attention heads \(\d+\) must be divisible by"),
    (Cause.HEADS, r"Error: .*is not divisible by"),
    # For its own sockets vLLM tries another port, and logs that it does.
    (Cause.PORT, r"[Aa]ddress already in use(?!. Retrying)"),
    (Cause.WEIGHTS, r"Cannot find any model weights with"),
    (Cause.WEIGHTS, r"Invalid repository ID or local directory specified"),
    (Cause.WEIGHTS, r"weights were not initialized from checkpoint"),
    (Cause.WEIGHTS, r"(SafetensorError|Error while deserializing header|does not appear to have a file named)"),
    (Cause.DEVICE, r"World size \(\d+\) is larger than the number of"),
    (Cause.DEVICE, r"Failed to infer device type"),
    (Cause.DEVICE, r"No CUDA GPUs are available|CUDA driver version is insufficient|NVIDIA driver on your system"),
    (Cause.DEVICE, r"CUDA error:|CUDA initialization:|NVMLError"),
    (Cause.FLAGS, r"error: unrecognized arguments:|error: argument "),
    (Cause.FLAGS, r"^(TypeError|ValueError): (Error: )?--[a-z]"),
    (Cause.QUANTIZATION, r"Unknown quantization method"),
    (Cause.QUANTIZATION, r"does not match the quantization method specified in the `quantization` argument"),
    # What vLLM's configs refuse, as pydantic reports it on the line after "1 validation error for ModelConfig".
    # What transformers' config classes refuse.
    (Cause.CONFIG, r"Field '\w+' expected .*, got "),
    (Cause.CONFIG, r"^(Value error|Assertion failed|Input should be) ?,? ?.*\[type="),
)  # fmt: skip
# Pydantic's details after its message.
_DETAILS = re.compile(r"\s*\[type=[a-z_]+, input_value=.*$")
# The line before it, where one field is refused; of a union it also names the member: "hf_overrides.dict[str,any]".
_FIELD = re.compile(r"^([a-z][a-z_]+)(\.\S+)?$")
_COMPILED = tuple((cause, re.compile(pattern)) for cause, pattern in PATTERNS)
_ERROR = re.compile(r"\b\w*(Error|Exception)\b: ")
# Lines that name no cause but say where one stands.
_POINTER = re.compile(
    r"[Ss]ee (the )?(root cause|stack trace|error|log|traceback|above)|[Rr]oot cause above|\(above\)|^Traceback|"
    r"EngineCore failed to start|WorkerProc failed to start|Engine core initialization failed|"
    r"WorkerProc initialization failed|EngineCore encountered (an issue|a fatal error)"
)
# The lines of a traceback between its head and its error.
_NOISE = re.compile(r"^(File \"|\^|~|raise |return |self\.|await |with |During handling|The above exception)")
# How vLLM refuses values that neither its parser nor its configs check, in its API server before it starts its engine.
_REFUSAL = re.compile(r"^(ValueError|KeyError|TypeError|AssertionError|NotImplementedError)\b")
_ENGINE = re.compile(r"^\((EngineCore|Worker)\S*( pid=\d+)?\)")
# A warning may name an error that has not happened.
_HARMLESS = re.compile(r"^(\([^)]* pid=\d+\)\s*)?(DEBUG|INFO|WARNING) ")
# "(EngineCore pid=7) ERROR 11-20 16:09:01 [core.py:1]" before a message.
_PREFIX = re.compile(r"^(\([^)]* pid=\d+\)\s*)?((DEBUG|INFO|WARNING|ERROR|CRITICAL) \S+ \S+ \[[^\]]*\]\s*)?")


@dataclass(frozen=True)
class Failure:
    """A start-up failure.

    Attributes:
        cause: its class.
        line: the message that shows it, without vLLM's log prefix.
        suggestion: a hint of the server's own, better than that of the class.
    """

    cause: Cause
    line: str
    suggestion: str = ""

    @property
    def hint(self) -> str:
        return self.suggestion or HINTS[self.cause]


def message_of(line: str) -> str:
    """A log line without its process, level and time."""
    return _PREFIX.sub("", line.strip()).strip()


def classify(lines: Iterable[str], status: int = 1) -> Failure:
    """The failure behind a log.

    Args:
        lines: the log, oldest line first.
        status: exit status as subprocess gives it; -9 without a message is the kernel's out-of-memory killer.
    """
    known = [(line, text) for line in lines if (text := message_of(line))]
    messages = [text for _, text in known]
    for cause, pattern in _COMPILED:
        for index, text in enumerate(messages):
            if pattern.search(text):
                suggestion = next((one for one in messages if one.startswith(SUGGESTION)), "")
                line = _DETAILS.sub("", text).removeprefix("Value error, ")
                field = _FIELD.match(messages[index - 1]) if index and cause is Cause.CONFIG else None
                return Failure(cause, f"{field[1]}: {line}" if field else line, suggestion)
    if status == -9:
        return Failure(Cause.HOST_MEMORY, "killed by SIGKILL, as the kernel does when memory runs out")
    errors = [text for line, text in known if _ERROR.search(text) and not _HARMLESS.match(line.strip())]
    # The first error is the cause; the later ones follow from it, and some only point to it.
    telling = [text for text in errors if not _POINTER.search(text)]
    others = [text for text in messages if not _POINTER.search(text) and not _NOISE.match(text)]
    refused = telling and _REFUSAL.match(telling[0]) and not any(_ENGINE.match(line.strip()) for line, _ in known)
    return Failure(
        Cause.CONFIG if refused else Cause.UNKNOWN, (telling[:1] or others[-1:] or ["its log names no cause"])[0]
    )
