"""vLLM's ring between engine and worker: its waits are short sleeps on a CPU, and messages still pass."""

import resource
import subprocess
import sys
import threading
from time import monotonic

import pytest

from vllm_quant_plugin import engine_wait

PROGRAM = """
import sys
from vllm_quant_plugin.plugin import register
register()
assert {ring!r} not in sys.modules, "register imported it"
import {ring} as ring
print(ring.sched_yield.__module__)
"""


@pytest.mark.parametrize(
    ("setting", "module"), [(None, "vllm_quant_plugin.engine_wait"), ("spin", "vllm.distributed.utils")]
)
def test_register_replaces_the_yield(setting: str | None, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VQP_ENGINE_WAIT", raising=False)
    if setting:
        monkeypatch.setenv("VQP_ENGINE_WAIT", setting)
    program = PROGRAM.format(ring=engine_wait.RING)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-1] == module


def test_messages_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that has to wait rests, and gets each message whole and in order."""
    from vllm.distributed.device_communicators import shm_broadcast as ring

    rests = 0

    def counted() -> None:
        nonlocal rests
        rests += 1
        engine_wait.pause()

    monkeypatch.setattr(ring, "sched_yield", counted)
    writer = ring.MessageQueue(n_reader=1, n_local_reader=1, max_chunks=2)
    reader = ring.MessageQueue.create_from_handle(writer.export_handle(), 0)
    received: list[int] = []

    def read() -> None:
        reader.wait_until_ready()
        received.extend(reader.dequeue(timeout=30) for _ in range(20))

    thread = threading.Thread(target=read)
    thread.start()
    writer.wait_until_ready()
    for number in range(20):
        begin = monotonic()
        while monotonic() < begin + 0.002:
            pass
        writer.enqueue(number, timeout=30)
    thread.join(60)
    assert received == list(range(20))
    assert rests > 0


def test_rest_gives_up_the_processor() -> None:
    """Each rest leaves the core by itself, as a sleep does and a yield does not."""
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    for _ in range(500):
        engine_wait.pause()
    assert resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before >= 500
