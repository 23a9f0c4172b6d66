"""Environment of every test: offline, quiet, in-process engines, no more threads than cores.

Set before anything imports vLLM or torch, which read these once. Nothing heavy may be
imported here: most tests need neither.
"""

from __future__ import annotations

import os
import tempfile

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
os.environ["VQP_LEDGER"] = os.path.join(tempfile.gettempdir(), f"vqp-test-{os.getpid()}", "launches.sqlite")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--screenshots DIR``: where the tests in a browser keep their pictures."""
    parser.addoption(
        "--screenshots", default=None, help="keep the browser tests' pictures of every page in this folder"
    )
