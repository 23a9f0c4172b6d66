"""How vLLM's processes wait for each other on a CPU: in short sleeps, not in a loop of ``sched_yield``.

Engine core and workers pass each step through a ring in shared memory. For a second after each message, vLLM's
reader (``distributed/device_communicators/shm_broadcast.py``) calls ``sched_yield`` until the next one is there: some
hundred thousand times a second. On a GPU that costs an idle core. On a CPU it takes one from the model's threads,
and under Linux 6.18, where a yield gives up a task's virtual time, it keeps every other process of the machine,
kernel threads included, waiting for up to seconds.

``VQP_ENGINE_WAIT=spin`` leaves vLLM as it is; ``benchmarks/serve_load.py wait`` compares the two.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
import threading
import time
from typing import Any

from vllm_quant_plugin.import_hook import after_import

RING = "vllm.distributed.device_communicators.shm_broadcast"
VARIABLE = "VQP_ENGINE_WAIT"

# Seconds; the kernel adds some 15 us. Two such waits lie in a step of milliseconds. At 15 us the wake-ups alone keep
# the launcher and the API server waiting three times as long.
PAUSE = 50e-6
# The kernel may prolong a thread's sleeps by its timer slack, 50 us unless told.
SLACK_NS = 1000
_PR_SET_TIMERSLACK = 29

_thread = threading.local()


def rest() -> None:
    """Sleep for ``PAUSE``, the GIL released. Lowers the calling thread's timer slack, the first time."""
    if not getattr(_thread, "precise", False):
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(SLACK_NS), 0, 0, 0)
        _thread.precise = True
    time.sleep(PAUSE)


def rest_while_waiting() -> None:
    """Let the ring's readers and writers of this process sleep wherever they would yield."""
    if sys.platform == "linux" and os.environ.get(VARIABLE) != "spin":
        after_import(RING, _replace_yield)


def _replace_yield() -> None:
    ring: Any = importlib.import_module(RING)
    # The ring looks the name up with each wait. A vLLM without it waits in another way, which is left alone.
    if hasattr(ring, "sched_yield"):
        ring.sched_yield = rest
