"""What the engine says of its memory, read from its log: the planner's figures are held against it.

vLLM has no gauge for either (its loader and workers log them). Wording:
vllm/v1/worker/gpu_model_runner.py, vllm/v1/core/kv_cache_utils.py.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

_WEIGHTS = re.compile(r"Model loading took ([\d.]+) GiB memory")
_KV_TOKENS = re.compile(r"KV cache size: ([\d,]+) tokens")
_KV_BYTES = re.compile(r"Available KV cache memory: ([\d.]+) GiB|\(([\d.]+)/[\d.]+\)\)? GiB for KV cache on node")
_GIB = 2**30


@dataclass
class Actuals:
    """Figures of the running server; None until told.

    Attributes:
        weight_bytes: the fullest rank's weights.
        kv_bytes: KV cache of one rank.
        kv_tokens: tokens of KV cache.
    """

    weight_bytes: int | None = None
    kv_bytes: int | None = None
    kv_tokens: int | None = None

    def read(self, line: str) -> bool:
        """Take what a log line tells; whether it told something."""
        if match := _WEIGHTS.search(line):
            # One line per rank: plans speak of the fullest.
            self.weight_bytes = max(self.weight_bytes or 0, int(float(match[1]) * _GIB))
        elif match := _KV_TOKENS.search(line):
            self.kv_tokens = int(match[1].replace(",", ""))
        elif match := _KV_BYTES.search(line):
            self.kv_bytes = int(float(match[1] or match[2]) * _GIB)
        else:
            return False
        return True

    def known(self) -> dict[str, int]:
        """The figures that are known."""
        return {name: value for name, value in asdict(self).items() if value is not None}
