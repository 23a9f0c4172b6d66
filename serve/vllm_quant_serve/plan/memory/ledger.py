"""Planned against actual figures of launches: a small SQLite file, and the corrections that it gives. No torch.

After a launch ``record_launch`` keeps the plan and the engine's figures. ``plan --accuracy`` reports
the absolute errors of all launches; ``residuals`` of launches like the planned one (vLLM version,
device, architecture) narrow the planner's interval of overheads.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_quant_kernels import env
from vllm_quant_plugin.errors import OutputError
from vllm_quant_serve.plan.memory.overhead import version_key
from vllm_quant_serve.plan.types import Interval, Plan

if TYPE_CHECKING:
    import sqlite3

LEAST_LAUNCHES = 3
MARGIN = 64 << 20
_COLUMNS = {
    "time": "REAL", "model": "TEXT", "vllm": "TEXT", "device": "TEXT", "architecture": "TEXT", "quantization": "TEXT",
    "tp": "INTEGER", "pp": "INTEGER", "dp": "INTEGER", "max_model_len": "INTEGER", "pinned": "INTEGER",
    "budget": "INTEGER", "overhead": "INTEGER", "planned_weight": "INTEGER", "weight": "INTEGER",
    "planned_kv_bytes": "INTEGER", "kv_bytes": "INTEGER", "planned_kv_tokens": "INTEGER", "kv_tokens": "INTEGER",
    "planned_kv_blocks": "INTEGER", "kv_blocks": "INTEGER", "load_seconds": "REAL",
}  # fmt: skip


def ledger_path() -> Path:
    """``$VQP_LEDGER``, else ``vllm-quant/launches.sqlite`` in the user's state folder."""
    chosen = env.text("VQP_LEDGER")
    if chosen:
        return Path(chosen)
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "vllm-quant" / "launches.sqlite"


def _open(path: Path) -> sqlite3.Connection:
    import sqlite3

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        found = sqlite3.connect(path, timeout=5)
        columns = ", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items())
        found.execute(f"CREATE TABLE IF NOT EXISTS launches ({columns})")
        known = {row[1] for row in found.execute("PRAGMA table_info(launches)")}
        for name, kind in _COLUMNS.items():
            if name not in known:  # a ledger of an earlier version
                found.execute(f"ALTER TABLE launches ADD COLUMN {name} {kind}")
    except (OSError, sqlite3.Error) as err:
        raise OutputError(f"{path}: cannot be used: {err}", "set VQP_LEDGER to a file that can be written") from None
    return found


def record_launch(
    plan: Plan, actuals: Mapping[str, int], *, vllm: str, load_seconds: float | None = None, path: Path | None = None
) -> None:
    """Keep one launch.

    Args:
        actuals: ``weight_bytes``, ``kv_bytes``, ``kv_tokens``, ``kv_blocks`` per rank, those that were reported.
        vllm: version that served.

    Raises:
        OutputError: the file cannot be written.
    """
    row: dict[str, Any] = {
        "time": time.time(), "model": plan.model, "vllm": version_key(vllm), "device": plan.device,
        "architecture": plan.architecture, "quantization": plan.quantization, "tp": plan.tensor_parallel_size,
        "pp": plan.pipeline_parallel_size, "dp": plan.data_parallel_size, "max_model_len": plan.max_model_len,
        "pinned": int(plan.kv_tokens.low == plan.kv_tokens.high), "budget": plan.memory_budget,
        "overhead": plan.overhead_bytes.value, "planned_weight": plan.weight_bytes_per_rank,
        "weight": actuals.get("weight_bytes"), "planned_kv_bytes": plan.kv_bytes.value,
        "kv_bytes": actuals.get("kv_bytes"), "planned_kv_tokens": plan.kv_tokens.value,
        "kv_tokens": actuals.get("kv_tokens"), "planned_kv_blocks": plan.kv_blocks,
        "kv_blocks": actuals.get("kv_blocks"), "load_seconds": load_seconds,
    }  # fmt: skip
    names = ", ".join(row)
    marks = ", ".join(f":{name}" for name in row)
    with closing(_open(path or ledger_path())) as ledger, ledger:
        ledger.execute(f"INSERT INTO launches ({names}) VALUES ({marks})", row)


def _rows(query: str, values: Sequence[object], path: Path | None) -> list[tuple[Any, ...]]:
    """Rows of a query; none where nothing was recorded or the file is not a ledger."""
    import sqlite3

    path = path or ledger_path()
    if not path.exists():
        return []
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as ledger:
            return ledger.execute(query, values).fetchall()
    except sqlite3.Error:
        return []


def residuals(vllm: str, device: str, architecture: str, path: Path | None = None) -> tuple[int, ...]:
    """Actual minus planned overhead of launches like this one, bytes per rank; without those of a pinned cache."""
    if not (path or ledger_path()).exists():
        return ()
    query = (
        "SELECT budget - weight - kv_bytes - overhead FROM launches WHERE vllm = ? AND device = ? AND architecture = ?"
        " AND pinned = 0 AND weight IS NOT NULL AND kv_bytes IS NOT NULL ORDER BY time DESC LIMIT 50"
    )
    return tuple(int(row[0]) for row in _rows(query, (version_key(vllm), device, architecture), path))


def narrowed(overhead: Interval, found: Sequence[int]) -> Interval:
    """``overhead`` moved by the median residual and no wider than the residuals seen, with a margin."""
    if len(found) < LEAST_LAUNCHES:
        return overhead
    value = max(overhead.value + int(statistics.median(found)), 0)
    low = min(max(overhead.value + min(found) - MARGIN, 0), value)
    return Interval(low, value, max(overhead.value + max(found) + MARGIN, value))


@dataclass(frozen=True)
class Accuracy:
    """Absolute relative errors of one figure over all launches that reported it."""

    figure: str
    launches: int
    mean: float
    p95: float
    worst: float


def accuracy(path: Path | None = None) -> list[Accuracy]:
    """Mean absolute error, 95th percentile and worst case of weights and KV tokens; pinned caches separately."""
    found = []
    for figure, planned, actual, where in (
        ("weights per rank", "planned_weight", "weight", "1"),
        ("KV tokens, pinned", "planned_kv_tokens", "kv_tokens", "pinned = 1"),
        ("KV blocks, pinned", "planned_kv_blocks", "kv_blocks", "pinned = 1"),
        ("KV tokens, estimated", "planned_kv_tokens", "kv_tokens", "pinned = 0"),
        ("KV blocks, estimated", "planned_kv_blocks", "kv_blocks", "pinned = 0"),
    ):
        rows = _rows(f"SELECT {planned}, {actual} FROM launches WHERE {actual} > 0 AND {where}", (), path)
        errors = sorted(abs(ours - theirs) / theirs for ours, theirs in rows)
        if errors:
            p95 = errors[min(len(errors) - 1, -(-95 * len(errors) // 100) - 1)]
            found.append(Accuracy(figure, len(errors), statistics.fmean(errors), p95, errors[-1]))
    return found
