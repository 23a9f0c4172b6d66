"""Records a launch, planned and actual figures, in the planner's ledger, which makes later plans more accurate."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine
from typing import Any

from vllm_quant_plugin.errors import OutputError
from vllm_quant_serve.plan.memory.ledger import record_launch
from vllm_quant_serve.plan.search.context import installed_version
from vllm_quant_serve.plan.types import Plan
from vllm_quant_serve.supervise.session import Session


def launch_recorder(plan: Plan) -> Callable[[Session], Coroutine[Any, Any, None]]:
    """What a session does once its server is ready for the first time: record the launch of ``plan``.

    A start that needed memory fallbacks is no launch of this plan, and one whose engine logged no figure teaches
    nothing: neither is recorded. A ledger that cannot be written is reported and does no harm.
    """

    async def record(session: Session) -> None:
        actuals = session.actuals.known()
        if not actuals or session.counts.retries:
            return
        try:
            await asyncio.to_thread(
                record_launch, plan, actuals, vllm=installed_version(), load_seconds=session.load_seconds
            )
        except (OutputError, sqlite3.Error) as error:
            session.report.event("ledger", f"this launch is not recorded for later plans: {error}")

    return record
