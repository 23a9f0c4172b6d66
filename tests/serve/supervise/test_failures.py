"""Start-up failures: every message is vLLM's or PyTorch's own, and every step after one is strictly smaller."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest

from vllm_quant_serve.flags import parse_args
from vllm_quant_serve.server import option_names, suggestions
from vllm_quant_serve.supervise.failures import Cause, Failure, classify, message_of
from vllm_quant_serve.supervise.fallbacks import MemoryFallbacks
from vllm_quant_serve.supervise.startup import shortened

# (file below vllm/, literal in it, a message as it is logged, cause)
FROM_VLLM = [
    ("v1/core/kv_cache_utils.py", "No available memory for the cache blocks. ",
     "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`", Cause.KV_CACHE),
    ("v1/core/kv_cache_utils.py", "To serve at least one request with the model's max seq len (",
     "ValueError: To serve at least one request with the model's max seq len (131072), (16.0 GiB KV cache is needed, "
     "which is larger than the available KV cache memory (9.1 GiB). Based on the available memory, the estimated "
     "maximum model length is 74544. Try increasing", Cause.KV_CACHE),
    ("v1/worker/utils.py", " GiB) on startup is less than desired GPU memory utilization (",
     "ValueError: Free memory on device cuda:0 (31.2/79.2 GiB) on startup is less than desired GPU memory utilization "
     "(0.92, 72.86 GiB). Decrease GPU memory utilization", Cause.MEMORY),
    ("v1/worker/gpu_model_runner.py", "CUDA out of memory occurred when warming up sampler with ",
     "RuntimeError: CUDA out of memory occurred when warming up sampler with 1024 dummy requests.", Cause.MEMORY),
    ("v1/worker/cpu_worker.py", "Available memory on node ",
     "ValueError: Available memory on node 0 (3.1/24.0 GiB) on kv cache allocation is less than requested",
     Cause.HOST_MEMORY),
    ("config/model.py", " must be divisible by tensor parallel size (",
     "ValueError: Total number of attention heads (52) must be divisible by tensor parallel size (3).", Cause.HEADS),
    ("distributed/utils.py", " is not divisible by ", "AssertionError: 6912 is not divisible by 5", Cause.HEADS),
    ("config/parallel.py", ") is larger than the number of",
     "ValueError: World size (8) is larger than the number of available GPUs (4) in this node.", Cause.DEVICE),
    ("config/device.py", "Failed to infer device type, please set ",
     "RuntimeError: Failed to infer device type, please set the environment variable", Cause.DEVICE),
    ("model_executor/model_loader/default_loader.py", "Cannot find any model weights with `",
     "RuntimeError: Cannot find any model weights with `/models/x`", Cause.WEIGHTS),
    ("transformers_utils/config.py", "Invalid repository ID or local directory specified:",
     "ValueError: Invalid repository ID or local directory specified: '/models/x'.", Cause.WEIGHTS),
    ("config/model.py", "Unknown quantization method: ",
     "ValueError: Unknown quantization method: mystery. Must be one of [...]", Cause.QUANTIZATION),
]  # fmt: skip
ELSEWHERE = [
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total", Cause.MEMORY),
    ("RuntimeError: [enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory",
     Cause.HOST_MEMORY),
    ("RuntimeError: unable to open shared memory object </torch_1_2> in read-write mode: No space left on device (28)",
     Cause.SHARED_MEMORY),
    ("OSError: [Errno 98] Address already in use", Cause.PORT),
    ("RuntimeError: No CUDA GPUs are available", Cause.DEVICE),
    ("RuntimeError: The NVIDIA driver on your system is too old (found version 11040).", Cause.DEVICE),
    ("api_server.py: error: unrecognized arguments: --no-such", Cause.FLAGS),
    ("ValueError: Error: --sse-keep-alive-interval must be a non-negative integer (0 disables)", Cause.FLAGS),
    ("safetensors_rust.SafetensorError: Error while deserializing header: incomplete metadata", Cause.WEIGHTS),
    ("ZeroDivisionError: division by zero", Cause.UNKNOWN),
]  # fmt: skip


@cache
def strings_of(path: Path) -> str:
    """All string literals of a module, f-string parts joined by what stands between them left out."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "" for part in node.values))
            found += [str(part.value) for part in node.values if isinstance(part, ast.Constant)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return "\n".join(found)


@pytest.mark.parametrize(("file", "literal", "message", "cause"), FROM_VLLM)
def test_messages_of_the_installed_vllm(file: str, literal: str, message: str, cause: Cause) -> None:
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.submodule_search_locations
    assert literal in strings_of(Path(spec.submodule_search_locations[0], file)), "vLLM has reworded it"
    assert literal.strip(" (`") in message or re.search(literal.strip(" ()`"), message)
    assert classify(log_of(message)).cause is cause


@pytest.mark.parametrize(("message", "cause"), ELSEWHERE)
def test_messages_of_others(message: str, cause: Cause) -> None:
    failure = classify(log_of(message))
    assert failure.cause is cause
    assert failure.line == message
    assert failure.hint


def log_of(message: str) -> list[str]:
    """A start-up log with ``message`` in the engine's traceback and what follows from it."""
    engine = "(EngineCore pid=11456) ERROR 11-20 16:09:21 [core.py:1111] "
    return [
        "(APIServer pid=1) INFO 11-20 16:09:01 [model.py:733] Resolved architecture: LlamaForCausalLM",
        engine + "EngineCore failed to start.",
        engine + "Traceback (most recent call last):",
        engine + message,
        "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s)",
    ]


def test_the_root_cause_is_shown_not_its_consequence() -> None:
    assert classify(log_of("KeyError: 'model.layers.0'")).line == "KeyError: 'model.layers.0'"


@pytest.mark.parametrize(
    "pointer",
    [
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
        "Exception: WorkerProc initialization failed due to an exception in a background process. See stack trace for "
        "root cause.",
        "EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause.",
    ],
)
def test_a_line_that_points_elsewhere_is_never_the_cause(pointer: str) -> None:
    engine = "(EngineCore pid=7) ERROR 11-20 16:09:21 [core.py:1111] "
    log = [engine + "EngineCore failed to start.", engine + "Traceback (most recent call last):", engine + pointer]
    assert classify([*log, engine + "KeyError: 'layers.0'"]).line == "KeyError: 'layers.0'"
    assert classify([engine + "KeyError: 'layers.0'", *log]).line == "KeyError: 'layers.0'"
    assert classify(log).line == "its log names no cause"


def test_what_vllms_configs_refuse_is_the_users_to_change() -> None:
    reason = "User-specified max_model_len (99999) is greater than the derived max_model_len (1024)"
    log = [
        "(APIServer pid=9) pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",
        f"(APIServer pid=9)   Value error, {reason} [type=value_error, input_value=ArgsKwargs((), {{}}), input_type=x]",
        "(APIServer pid=9)     For further information visit https://errors.pydantic.dev/2.13/v/value_error",
    ]
    failure = classify(log)
    assert failure == Failure(Cause.CONFIG, reason)
    assert failure.cause.is_usage
    heads = "Total number of attention heads (52) must be divisible by tensor parallel size (3)."
    assert classify([log[0], f"  Value error, {heads} [type=value_error, input_value=1]"]).line == heads


def test_a_refused_value_comes_with_its_name_and_ends_with_a_sentence() -> None:
    log = [
        "pydantic_core._pydantic_core.ValidationError: 2 validation errors for ModelConfig",
        "hf_overrides.dict[str,any]",
        "  Input should be a valid dictionary [type=dict_type, input_value='{bad', input_type=str]",
        "    For further information visit https://errors.pydantic.dev/2.13/v/dict_type",
    ]
    assert classify(log).line == "hf_overrides: Input should be a valid dictionary"
    field = classify(["TypeError: Field 'hidden_size' expected int, got str (value: 'x')"])
    assert field.cause is Cause.CONFIG
    first = "This is wrong" + ", very" * 20
    assert shortened(f"{first}. This says more{', much' * 40}.") == first
    assert shortened("word " * 100) == f"{('word ' * 60).strip()} ..."
    assert shortened("short. Whole.") == "short. Whole."


@pytest.mark.parametrize("line", [
    "KeyError: 'invalid tool call parser: nosuch (chose from { hermes })'",
    "ValueError: Unknown attention backend: 'X'",
    "KeyError: \"Reasoning parser 'nosuch' not found. Available parsers: x\"",
    "ValueError: Load format `nosuch` is not supported",
])  # fmt: skip
def test_what_is_refused_before_the_engine_starts_is_the_users_to_change(line: str) -> None:
    server = ["(APIServer pid=1) INFO 11-20 16:09:01 [api_server.py:1] version", f"(APIServer pid=1) {line}"]
    assert classify(server) == Failure(Cause.CONFIG, line)
    engine = "(EngineCore pid=7) INFO 11-20 16:09:21 [core.py:1] Initializing a V1 LLM engine"
    assert classify([engine, *server]) == Failure(Cause.UNKNOWN, line)
    assert classify(["(APIServer pid=1) OSError: no such device"]).cause is Cause.UNKNOWN


def test_the_flags_of_subcommands_are_known() -> None:
    parser = argparse.ArgumentParser()
    serve = parser.add_subparsers().add_parser("serve")
    serve.add_argument("--max-model-len", "-m")
    assert option_names(parser) == ["--help", "--help", "--max-model-len"]


def test_an_unknown_flag_comes_with_the_one_that_was_meant() -> None:
    known = ["--max-model-len", "--max-num-seqs", "--hf-overrides", "--seed"]
    words = ["serve", "m", "--max-modle-len", "5", "--max_num_seq=3", "--hf-overrides.a", "1", "--qqqq", "--see", "1"]
    assert suggestions(words, known) == ["did you mean --max-model-len (for --max-modle-len)"]
    failure = classify(["vllm: error: unrecognized arguments: --max-modle-len 5", *suggestions(words, known)])
    assert (failure.cause, failure.hint) == (Cause.FLAGS, "did you mean --max-model-len (for --max-modle-len)")


def test_a_warning_is_no_cause() -> None:
    lines = [
        "WARNING 11-20 16:09:01 [parallel.py:746] Address already in use. Retrying with a new port.",
        "(APIServer pid=1) WARNING 11-20 16:09:01 [u.py:2] Found ulimit of 20000. This can cause errors like "
        "`OSError: [Errno 24] Too many open files`.",
        "INFO 11-20 16:09:01 [x.py:1] head size 80 is not divisible by 64, using another backend",
        "(EngineCore pid=1) ERROR 11-20 16:09:21 [core.py:1111] KeyError: 'model.layers.0'",
    ]
    assert classify(lines) == Failure(Cause.UNKNOWN, "KeyError: 'model.layers.0'")


def test_sigkill_without_a_word_is_the_out_of_memory_killer() -> None:
    assert classify(["INFO loading"], -9).cause is Cause.HOST_MEMORY
    assert classify([], 1).cause is Cause.UNKNOWN


def test_prefixes_are_taken_off() -> None:
    line = "(EngineCore pid=11456) ERROR 11-20 16:09:21 [core.py:1111] ValueError: no"
    assert message_of(line) == "ValueError: no"
    assert message_of("ValueError: no") == "ValueError: no"


PLAN = {"max_model_len": 32768, "max_num_seqs": 256, "kv_bytes_per_token": 131072, "gpu_memory_utilization": 0.92}


def steps(words: list[str], planned: list[str], line: str, count: int = 2) -> list[dict[str, str]]:
    """The planner's flags after each of ``count`` steps, until none is left."""
    fallbacks = MemoryFallbacks(planned, parse_args(["m", *words]), PLAN)
    found = []
    for _ in range(count):
        if fallbacks.step(classify([line])) is None:
            break
        found.append(dict(fallbacks.flags))
    return found


FREE = FROM_VLLM[2][2]
TOO_LONG = FROM_VLLM[1][2]
NO_BLOCKS = FROM_VLLM[0][2]


def test_free_memory_tells_how_much_may_be_used() -> None:
    first, second = steps([], [], FREE)
    assert float(first["--gpu-memory-utilization"]) <= 31.2 / 79.2
    assert float(second["--gpu-memory-utilization"]) < float(first["--gpu-memory-utilization"])


def test_the_estimated_length_is_taken() -> None:
    assert steps([], ["--max-model-len", "131072"], TOO_LONG, 1)[0]["--max-model-len"] == "74544"
    # The plan's own length is below the estimate: then half of it.
    assert steps([], [], TOO_LONG, 1)[0]["--max-model-len"] == "16384"


def test_without_cache_blocks_fewer_sequences_are_run() -> None:
    assert [s["--max-num-seqs"] for s in steps([], [], NO_BLOCKS)] == ["128", "64"]


def test_a_pinned_cache_shrinks_but_keeps_room_for_one_request() -> None:
    one = PLAN["max_model_len"] * PLAN["kv_bytes_per_token"]
    planned = ["--kv-cache-memory-bytes", str(2 * one)]
    sizes = [int(s["--kv-cache-memory-bytes"]) for s in steps([], planned, ELSEWHERE[1][0], 9)]
    assert sizes[0] == int(1.5 * one)
    assert min(sizes) > one


@pytest.mark.parametrize("line", [FREE, TOO_LONG, NO_BLOCKS, ELSEWHERE[0][0], ELSEWHERE[1][0]])
def test_what_the_user_set_is_never_touched(line: str) -> None:
    words = ["--gpu-memory-utilization=0.9", "--max_num_seqs", "8", "--max-model-len", "4096",
             "--kv-cache-memory-bytes", "1G"]  # fmt: skip
    assert steps(words, [], line) == []


def test_only_memory_is_retried() -> None:
    fallbacks = MemoryFallbacks([], parse_args(["m"]), PLAN)
    for cause in Cause:
        assert (fallbacks.step(Failure(cause, "")) is not None) == cause.is_memory
