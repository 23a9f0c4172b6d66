"""Memory figures of the engine, read from its log and compared with the plan.

vLLM has no gauge for them; its loader and its workers log them. The wording is that of
vllm/v1/worker/gpu_model_runner.py and vllm/v1/core/kv_cache_utils.py.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

_WEIGHTS = re.compile(r"Model loading took ([\d.]+) GiB memory")
_KV_TOKENS = re.compile(r"KV cache size: ([\d,]+) tokens")
_KV_BYTES = re.compile(r"Available KV cache memory: ([\d.]+) GiB|\(([\d.]+)/[\d.]+\)\)? GiB for KV cache on node")
_GIB = 2**30
# vLLM logs two decimals: below this the figure is more rounding than measurement.
_LEAST_GIB = 0.5


def _gib(text: str) -> int | None:
    value = float(text)
    return int(value * _GIB) if value >= _LEAST_GIB else None


@dataclass
class Actuals:
    """Figures of the running server; None until its log has them.

    Attributes:
        weight_bytes: the fullest rank's weights.
        kv_bytes: KV cache of one rank.
        kv_tokens: tokens that the KV cache holds.
    """

    weight_bytes: int | None = None
    kv_bytes: int | None = None
    kv_tokens: int | None = None

    def read(self, line: str) -> bool:
        """Take the figure in a log line; whether there was one."""
        if match := _WEIGHTS.search(line):
            found = _gib(match[1])
            # One line per rank; the plan's figure is that of the fullest.
            self.weight_bytes = max(self.weight_bytes or 0, found) if found is not None else self.weight_bytes
            return found is not None
        if match := _KV_TOKENS.search(line):
            self.kv_tokens = int(match[1].replace(",", ""))
            return True
        if match := _KV_BYTES.search(line):
            self.kv_bytes = _gib(match[1] or match[2])
            return self.kv_bytes is not None
        return False

    def known(self) -> dict[str, int]:
        """The figures that are known."""
        return {name: value for name, value in asdict(self).items() if value is not None}
