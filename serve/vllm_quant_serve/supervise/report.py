"""What the launcher prints: lines for a terminal, or one JSON object per line with ``--json``."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

logger = logging.getLogger("vllm_quant_serve")
KEPT = 100


class Report:
    """Prints events to stdout and keeps the last ones. The server's log goes to stderr and never mixes with them."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.history: list[dict[str, Any]] = []

    def event(self, name: str, text: str, **fields: Any) -> None:
        """Report one event.

        Args:
            name: its machine-readable name, e.g. ``ready``.
            text: human-readable line.
            fields: JSON-ready details.
        """
        record = {"event": name, "time": round(time.time(), 3), "message": text, **fields}
        # The last events suffice for the status page, and a server may run for a year.
        self.history = [*self.history[-(KEPT - 1) :], record]
        self._print(json.dumps(record) if self.as_json else text)

    def object(self, value: dict[str, Any]) -> None:
        """Print one JSON document (``--dry-run --json``)."""
        self._print(json.dumps(value, indent=2))

    def _print(self, line: str) -> None:
        try:
            print(line, file=sys.stdout, flush=True)
        except OSError:  # the reader has gone; the server keeps running
            logger.debug("stdout is closed")
