"""``POST /plan`` for a FastAPI app: the same question and answer as ``vllm-quant plan --json``. No torch.

Each question is answered by a process of its own (``child``), one at a time. It ends with its answer, when its time is
over, when the client leaves, and with this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from vllm_quant_serve.plan.child import MEMORY

SECONDS = 20.0
MOST_OUTPUT = 16 << 20
_CHILD = (sys.executable, "-m", "vllm_quant_serve.plan.child")


def _failure(status: int, message: str, hint: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "hint": hint, "exit_code": 2}}, status, headers)


async def ask(body: bytes, seconds: float = SECONDS) -> Response:
    """The answer of a child process to a body.

    Cancelling the call ends the process.
    """
    child = await asyncio.create_subprocess_exec(
        *_CHILD, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(seconds):
            output = await _exchange(child, body)
        answered = json.loads(output)
    except TimeoutError:
        return _failure(422, f"the plan takes more than {seconds:g} s", "ask for a smaller one, or use vllm-quant plan")
    except ValueError:
        # It was ended by one of its limits before it could say so.
        return _failure(422, f"the plan needs more than {MEMORY >> 20} MiB or too much time", "ask for a smaller one")
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await asyncio.shield(child.wait())
    return JSONResponse(answered["document"], answered["status"])


async def _exchange(child: asyncio.subprocess.Process, body: bytes) -> bytes:
    assert child.stdin is not None
    assert child.stdout is not None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        child.stdin.write(body)
        await child.stdin.drain()
    child.stdin.close()
    output = b""
    while len(output) <= MOST_OUTPUT and (part := await child.stdout.read(1 << 16)):
        output += part
    return output


async def _gone(request: Request) -> None:
    """Returns when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def plan_router() -> APIRouter:
    """A router with ``POST /plan``."""
    router = APIRouter()
    slot = asyncio.Lock()

    @router.post("/plan")
    async def post_plan(request: Request) -> Response:
        # Read first: a body that arrives slowly must not hold the slot.
        body = await request.body()
        if slot.locked():
            return _failure(503, "another plan is being made", "ask again in a second", {"Retry-After": "1"})
        async with slot:
            asked = asyncio.ensure_future(ask(body))
            left = asyncio.ensure_future(_gone(request))
            try:
                await asyncio.wait((asked, left), return_when=asyncio.FIRST_COMPLETED)
                return await asked if asked.done() else Response(status_code=499)
            finally:
                for task in (asked, left):
                    task.cancel()
                # The process has ended before the next question may start one.
                await asyncio.gather(asked, left, return_exceptions=True)

    return router
