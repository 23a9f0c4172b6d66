"""Whether calibration text reached every module: experts that nobody chose, layers without signal. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Fewer tokens than this leave a module's statistics to chance.
FEW_TOKENS = 128
_EXPERT = re.compile(r"\.experts\.\d+\.")
_NAMED = 3


def describe_coverage(seen: Mapping[str, int], tokens: int) -> tuple[dict[str, Any], list[str]]:
    """The coverage report and what a user should be told.

    Args:
        seen: module -> calibration tokens that reached it with a signal.
        tokens: in the calibration windows.

    Returns:
        ``tokens``; ``unseen`` and ``scarce`` modules (without tokens; with fewer than ``FEW_TOKENS`` of a longer
        text) and ``unused_experts``, how many of how many; then one line for each trouble.
    """
    unseen = sorted(name for name, count in seen.items() if not count)
    scarce = sorted(name for name, count in seen.items() if 0 < count < min(FEW_TOKENS, tokens))
    experts = {name[: found.end()] for name in seen if (found := _EXPERT.search(name))}
    unused = {name[: found.end()] for name in unseen if (found := _EXPERT.search(name))}
    report: dict[str, Any] = {"tokens": tokens, "unseen": unseen, "scarce": scarce}
    warnings = []
    if experts:
        report["unused_experts"] = [len(unused), len(experts)]
    if unused:
        warnings.append(
            f"{len(unused)} of {len(experts)} experts saw no calibration token and were rounded to nearest; "
            "give more or broader text"
        )
    silent = [name for name in unseen if not _EXPERT.search(name)]
    if silent:
        more = f" and {len(silent) - _NAMED} more" if len(silent) > _NAMED else ""
        warnings.append(f"no signal reached {', '.join(silent[:_NAMED])}{more}: rounded to nearest")
    if scarce:
        warnings.append(f"{len(scarce)} modules saw fewer than {FEW_TOKENS} calibration tokens, e.g. {scarce[0]}")
    return report, warnings
