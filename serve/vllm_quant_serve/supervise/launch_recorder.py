"""Plan and actual figures of a launch go into the planner's ledger, so that later plans are nearer to the truth."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from vllm_quant_plugin.errors import OutputError
from vllm_quant_serve.plan.context import installed_version
from vllm_quant_serve.plan.ledger import record_launch
from vllm_quant_serve.plan.types import Plan

if TYPE_CHECKING:
    from vllm_quant_serve.supervise.session import Session


def recorder(plan: Plan) -> Callable[[Session], Coroutine[Any, Any, None]]:
    """What a supervisor does once its server is ready.

    A start-up that needed memory fallbacks is no launch of this plan, and one whose engine logged no figure teaches
    nothing: neither is recorded. A ledger that cannot be written is reported and does no harm.
    """

    async def remember(one: Session) -> None:
        actuals = one.actuals.known()
        if not actuals or one.counts.retries:
            return
        try:
            await asyncio.to_thread(
                record_launch, plan, actuals, vllm=installed_version(), load_seconds=one.load_seconds
            )
        except (OutputError, sqlite3.Error) as error:
            one.report.event("ledger", f"this launch is not kept for later plans: {error}")

    return remember
