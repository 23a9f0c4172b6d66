"""A verdict in words. No torch."""

from __future__ import annotations

from vllm_quant_kernels.cuda.verify.families import FAMILIES, SPEED_CLASSES
from vllm_quant_kernels.cuda.verify.verdict import Speed, Verdict


def served(verdict: Verdict) -> list[str]:
    """The speed classes whose layers ours serve."""
    return [name for name in SPEED_CLASSES if verdict.why_not(name) is None]


def counts(verdict: Verdict) -> dict[str, int]:
    """Families by status, in the order of the statuses' first appearance; families that were not checked too."""
    found: dict[str, int] = {}
    for name in FAMILIES:
        status = verdict.families[name].status if name in verdict.families else "unfinished"
        found[status] = found.get(status, 0) + 1
    return found


def all_right(verdict: Verdict) -> bool:
    """Whether every family is right or absent on this GPU."""
    return not counts(verdict).keys() - {"right", "absent"}


def one_line(verdict: Verdict) -> str:
    """What was found and what follows from it."""
    found, ours = counts(verdict), served(verdict)
    tally = ", ".join(f"{count} {status}" for status, count in found.items())
    serve = f"this project's kernels serve {', '.join(ours)}, vLLM's the rest" if ours else "vLLM's kernels serve"
    again = "; `vllm-quant verify-kernels` goes through all of it" if "unfinished" in found else ""
    return f"CUDA kernels on {verdict.key.gpu}: {tally}; {serve}{again}"


def rows_of(verdict: Verdict, name: str) -> str:
    """From which M to which M ours is faster, as far as it was timed."""
    faster = verdict.speed.get(name, Speed()).faster()
    return "" if faster is None else f"{faster[0]} to {faster[1]}"


def ratios_of(verdict: Verdict, name: str) -> str:
    """The other kernel's time over ours by M."""
    ratios = verdict.speed.get(name, Speed()).ratios()
    return "  ".join(f"{m}: {1 / ratio:.2f}x" for m, ratio in ratios.items())
