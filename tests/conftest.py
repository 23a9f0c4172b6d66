"""Environment of every test: offline, quiet, in-process engines, no more threads than cores.

Set before anything imports vLLM or torch, which read these once. Nothing heavy may be
imported here: most tests need neither.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

# Nothing may reach for a model hub or report usage.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ["DO_NOT_TRACK"] = "1"

# An engine in the test's own process starts in seconds, and a failure has a traceback.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

os.environ["TOKENIZERS_PARALLELISM"] = "false"
# make test runs several of these processes: they share the cores, and no engine binds itself to one.
_processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _processes)))
if _processes > 1:
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

# Launches of tests are no launches of this machine's user.
os.environ["VQP_VERDICTS"] = os.path.join(tempfile.gettempdir(), f"vqp-test-{os.getpid()}", "verdicts")
os.environ["VQP_LEDGER"] = os.path.join(tempfile.gettempdir(), f"vqp-test-{os.getpid()}", "launches.sqlite")

# The files that take minutes, longest first: two processes that begin with these end at about the same time.
LONGEST = (
    "methods/test_matrix.py",
    "serve/test_real_engine.py",
    "serve/test_examples.py",
    "methods/test_tensor_parallel.py",
    "quantize/algorithms/test_smoothquant.py",
    "quantize/test_quantize_model.py",
    "cuda/test_compile.py",
    "quantize/engine/test_experts.py",
    "cuda/test_w8a8_compile.py",
    "methods/test_falcon.py",
    "methods/test_engine_options.py",
    "extension/test_extension.py",
    "cuda/test_ptx.py",
    "serve/plan/test_command.py",
    "serve/plan/exact/test_exact.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--screenshots DIR``: where the tests in a browser keep their pictures."""
    parser.addoption(
        "--screenshots", default=None, help="keep the browser tests' pictures of every page in this folder"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    rank = {here / name: position for position, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))
