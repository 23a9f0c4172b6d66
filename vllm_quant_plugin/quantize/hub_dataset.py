"""Calibration documents from a data set on the hub: ``org/name``, ``org/name:split`` or ``org/name:config:split``."""

from __future__ import annotations

import itertools
import os
import re
from typing import Any

from vllm_quant_plugin.errors import UsageError
from vllm_quant_plugin.quantize.quiet import quiet_output

_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+){0,2}$")
_FILES = (".txt", ".json", ".jsonl", ".parquet")
# Rows that are looked at for each sample wanted, and at least; a data set may hold terabytes.
ROWS_PER_SAMPLE, LEAST_ROWS = 16, 1024


def is_hub_dataset(source: str) -> bool:
    """Whether ``source`` is written like a data set of the hub and not like a file."""
    return bool(_ID.match(source)) and not source.endswith(_FILES)


def read_hub_rows(source: str, samples: int) -> list[dict[str, Any]]:
    """The first rows of a data set, enough for ``samples`` windows; from the local cache while offline.

    Raises:
        UsageError: no such data set, or the hub is out of reach.
    """
    name, *rest = source.split(":")
    config, split = (rest[0] if len(rest) == 2 else None), (rest[-1] if rest else "train")
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    try:
        with quiet_output():
            from datasets import load_dataset

            rows = load_dataset(name, config, split=split, streaming=not offline)
            return list(itertools.islice(rows, max(LEAST_ROWS, ROWS_PER_SAMPLE * samples)))
    except ImportError:
        raise UsageError(f"calibration data set {name}: `datasets` is not installed", "give a file") from None
    except (OSError, ValueError, RuntimeError) as err:
        if offline:
            reason = "not in the local cache while HF_HUB_OFFLINE is set"
        else:
            reason = (str(err).strip().splitlines() or [type(err).__name__])[0][:200]
        raise UsageError(
            f"calibration data set {source}: {reason}", "give a .txt, .json, .jsonl or .parquet file"
        ) from None
