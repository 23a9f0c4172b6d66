"""Watching a server that is up: once a second, until it is to stop, dies or hangs."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING

from vllm_quant_plugin.errors import EngineDiedError
from vllm_quant_serve.supervise.failures import classify
from vllm_quant_serve.supervise.process import ServerProcess, status_words
from vllm_quant_serve.supervise.state import State
from vllm_quant_serve.supervise.watchdog import Watchdog

if TYPE_CHECKING:
    from vllm_quant_serve.supervise.session import Session

HEALTH_POLL = 1.0


async def oversee(one: Session) -> None:
    """Return when a signal asks for a stop.

    Raises:
        EngineDiedError: the server died or hung; nothing of it is left.
    """
    assert one.server is not None
    # Without its plugin vLLM tells no engine steps, and without those nothing is known of hangs.
    allowed = os.environ.get("VLLM_PLUGINS")
    dog = Watchdog(one.options, heartbeat=allowed is None or "vqp_metrics" in allowed.split(","))
    server, check = one.server, None
    try:
        while not one.signals.first.is_set():
            await one.wait(HEALTH_POLL)
            if one.signals.first.is_set():
                return
            if not server.alive:
                status = await server.kill()
                words = classify(server.pump.tail, status).line
                raise EngineDiedError(f"the server died ({status_words(status)})", f"its log says: {words[:300]}")
            if one.launch.headless:
                continue
            health, now = await one.probe.health(), time.monotonic()
            dog.observe(one.pages(), health, now)
            if dog.hung(now):
                await _end_hung(one, server, dog.stalled(now))
            if dog.gone(now):
                await server.kill()
                raise EngineDiedError(f"the server stayed unhealthy: {dog.complaint}", "see its log above")
            if check is None or check.done():
                check = asyncio.ensure_future(dog.deep_check(one.probe)) if dog.deep_check_due(now) else None
            _judge(one, dog)
    finally:
        if check is not None:
            check.cancel()


async def _end_hung(one: Session, server: ServerProcess, seconds: float) -> None:
    one.state = State.HUNG
    one.counts.hangs += 1
    one.report.event("hung", f"requests wait and the engine has made no step for {seconds:.0f} s: killing it",
                     seconds=round(seconds, 1))  # fmt: skip
    await server.kill()
    raise EngineDiedError(f"the engine hung for {seconds:.0f} s", "--hang-timeout sets how long a step may take")


def _judge(one: Session, dog: Watchdog) -> None:
    before, one.state = one.state, State.READY if dog.healthy else State.UNHEALTHY
    if one.state is before:
        return
    if one.state is State.READY:
        one.report.event("recovered", "the server is healthy again")
    else:
        one.report.event("unhealthy", f"the server is unhealthy: {dog.complaint}")
