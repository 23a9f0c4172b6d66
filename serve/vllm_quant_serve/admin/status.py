"""The document behind ``/status`` and the status page."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from vllm_quant_plugin import __version__
from vllm_quant_serve.supervise import first_bytes
from vllm_quant_serve.supervise.session import Session

EVENTS = 30


def status_document(session: Session) -> dict[str, Any]:
    """State, plan against actual figures, counts and the last events of a session; what is unknown is None."""
    server = session.server if session.server is not None and session.server.alive else None
    streamed, whole = first_bytes.read(session.run_dir.path)
    return {
        "state": session.state.value,
        "version": __version__,
        "model": session.probe.model or session.launch.model,
        "url": session.launch.endpoint.url,
        "command": session.launch.line,
        "pid": server.pid if server else None,
        "ready_seconds": time.monotonic() - session.ready_at if session.ready_at is not None and server else None,
        "load_seconds": session.load_seconds,
        "in_flight": session.in_flight() if server else None,
        # As clients see them, in seconds, of the last answers; that of a whole answer is its duration.
        "ttft": first_bytes.quantiles(streamed),
        "whole_answers": first_bytes.quantiles(whole),
        "kernels": session.metadata.get("kernels", []),
        "plan": session.plan,
        "actual": session.actuals.known(),
        "counts": asdict(session.counts),
        "events": session.report.history[-EVENTS:],
        "history": session.history.to_json(),
    }
