"""Times as clients see them, and which requests met the objective by them.

The gate times each answer; vLLM's statistics know its tokens. Both run in the same API server process and find each
other by the request's id, which vLLM takes from the header ``X-Request-Id`` and puts between a prefix and a number
(vllm/entrypoints/openai/completion/serving.py). The gate adds that header where the client sent none.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

_HEADER = b"x-request-id"
_ENGINE_ID = re.compile(r"^(?:chat)?cmpl-(.+)$")
_PART = re.compile(r"-\d+$")
# vLLM hands out a request's last tokens before it reports its statistics, within the same engine step.
JUDGE_AFTER = 1.0


class ClientTimes:
    """The requests of one API server that clients still wait for, or that were answered a moment ago."""

    def __init__(
        self, observe: Callable[[float, bool], None], judge: Callable[[float, Sequence[Any]], None] | None
    ) -> None:
        """
        Args:
            observe: takes the seconds until the first byte of an answer, and whether it was streamed.
            judge: takes the same seconds and vLLM's statistics of the request (several for ``n`` > 1 or several
                prompts); None without an objective.
        """
        self._observe, self._judge = observe, judge
        self._open: dict[str, list[Any]] = {}

    def open(
        self, scope: MutableMapping[str, Any], headers: Mapping[bytes, bytes]
    ) -> tuple[str, MutableMapping[str, Any]]:
        """Begin a request.

        Returns:
            Its key, and the scope to go on with, which carries an id.
        """
        given = headers.get(_HEADER)
        key = given.decode("latin-1") if given is not None else secrets.token_hex(16)
        if given is None:
            scope = {**scope, "headers": [*scope.get("headers", ()), (_HEADER, key.encode())]}
        if key in self._open:  # two requests under one id of the clients' choice: only the first can be judged
            return "", scope
        self._open[key] = []
        return key, scope

    def attach(self, finished: Any) -> bool:
        """Take vLLM's statistics of a finished request; whether it belongs to a request of the gate."""
        match = _ENGINE_ID.match(finished.request_id or "")
        if match is None:
            return False
        for key in (match[1], _PART.sub("", match[1])):
            if key in self._open:
                self._open[key].append(finished)
                return True
        return False

    def close(self, key: str, first_byte: float | None, *, streamed: bool) -> None:
        """End a request; ``first_byte`` is None for one that was not answered."""
        if first_byte is not None:
            self._observe(first_byte, streamed)
        if first_byte is None or self._judge is None:
            self._open.pop(key, None)
            return
        asyncio.get_running_loop().call_later(JUDGE_AFTER, self._settle, key, first_byte)

    def _settle(self, key: str, first_byte: float) -> None:
        finished = self._open.pop(key, None)
        if finished and self._judge is not None:
            self._judge(first_byte, finished)


_current: ClientTimes | None = None


def set_client_times(times: ClientTimes | None) -> None:
    """What the gate of this process reports to."""
    global _current
    _current = times


def client_times() -> ClientTimes | None:
    """What the gate reports to; None where the stat logger does not run (``VLLM_PLUGINS`` without ``vqp_metrics``)."""
    return _current
