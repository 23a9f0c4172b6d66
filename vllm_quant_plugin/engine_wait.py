"""How vLLM's processes wait for each other on a CPU: in short sleeps, not in a loop of ``sched_yield``.

Engine core and workers exchange each step through a ring buffer in shared memory. For a second after each message,
vLLM's reader (``distributed/device_communicators/shm_broadcast.py``) calls ``sched_yield`` until the next one arrives,
some hundred thousand times per second. Beside a GPU that costs an idle core. On a CPU it takes a core from the model's
threads, and under Linux 6.18, where a yield gives up a task's virtual time, it delays every other process of the
machine, kernel threads included, by up to seconds.

``VQP_ENGINE_WAIT=spin`` leaves vLLM as it is; ``benchmarks/serve_load.py wait`` compares the two.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
import threading
import time
from typing import Any

from vllm_quant_kernels import env
from vllm_quant_plugin.import_hook import after_import

RING = "vllm.distributed.device_communicators.shm_broadcast"

# Seconds; the kernel adds about 15 us. A step of milliseconds contains two such waits. With 15 us the wake-ups alone
# keep the launcher and the API server waiting three times as long.
PAUSE = 50e-6
# The kernel may prolong a thread's sleeps by its timer slack, by default 50 us.
SLACK_NS = 1000
_PR_SET_TIMERSLACK = 29

_thread = threading.local()


def pause() -> None:
    """Sleep for ``PAUSE`` with the GIL released. The first call in a thread lowers its timer slack."""
    if not getattr(_thread, "precise", False):
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(SLACK_NS), 0, 0, 0)
        _thread.precise = True
    time.sleep(PAUSE)


def sleep_while_idle() -> None:
    """Let the ring buffer's readers and writers in this process sleep where they would yield."""
    if sys.platform == "linux" and env.choice("VQP_ENGINE_WAIT") != "spin":
        after_import(RING, _replace_yield)


def _replace_yield() -> None:
    ring: Any = importlib.import_module(RING)
    # The ring buffer looks the name up for each wait. A vLLM without it waits in another way, which stays as it is.
    if hasattr(ring, "sched_yield"):
        ring.sched_yield = pause
