"""One family's check, or the timings, in a process of its own: what goes wrong here costs this process only.

    python -m vllm_quant_kernels.cuda.verify.child --report FD [--device DEVICE] [--import MODULE] check FAMILY
                                                                                                  speed CLASS ...
                                                                                                  alive

Lines of JSON go to the descriptor FD: {"step": ...} before each step, {"timing": ..., "class": ...}, {"slow": ...,
"reason": ...} for a class that could not be timed to its end, and last {"status": ..., "reason": ...}.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vllm_quant_kernels.cuda.verify.families import FAMILIES, Family

if TYPE_CHECKING:
    from vllm_quant_kernels.cuda.verify.cases import Place

_PR_SET_PDEATHSIG = 1


def check_family(family: Family, place: Place) -> None:
    """Raises WrongError or AbsentError, or whatever a kernel raises."""
    from vllm_quant_kernels.cuda.verify import w8a8, weight_only

    if family.part == "pack":
        weight_only.pack(place)
    elif family.part == "quantize":
        w8a8.quantize(place)
    elif family.kernel == "experts":
        weight_only.experts(family.kind, place)
    elif family.kernel == "w8a8":
        backend = {"narrow": "own", "fused": "fused", "wide": "wgmma"}[family.part]
        w8a8.products(family.kind, backend, place)  # type: ignore[arg-type]
    elif family.part == "wide":
        weight_only.wide(family.kind, place)
    else:
        weight_only.narrow(family.kind, place)


def outcome(work: Callable[[], None]) -> dict[str, str]:
    """``work`` as a status and a reason."""
    import torch

    from vllm_quant_kernels.cuda.verify.cases import AbsentError, WrongError

    try:
        work()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except WrongError as error:
        return {"status": "wrong", "reason": str(error)}
    except AbsentError as error:
        return {"status": "absent", "reason": str(error)}
    except (torch.OutOfMemoryError, MemoryError) as error:
        return {"status": "unfinished", "reason": f"out of memory: {first_line(error)}"}
    except Exception as error:
        text = first_line(error)
        fault = "CUDA" in text or "cudaError" in text
        return {"status": "died" if fault else "failed", "reason": f"{type(error).__name__}: {text}"}
    return {"status": "right", "reason": ""}


def first_line(error: BaseException) -> str:
    """The first line of an error's text, at most 300 printable characters."""
    line = next(iter(str(error).splitlines()), "")
    return "".join(c if c.isprintable() else " " for c in line)[:300]


def time_classes(classes: Sequence[str], place: Place, tell: Callable[[dict[str, Any]], None]) -> None:
    """Time one class after the other; one that cannot be timed costs the others nothing."""
    import torch

    from vllm_quant_kernels.cuda.verify import speed

    for name in classes:
        tell({"begin": name})
        try:
            sizes = None if place.large else speed.Sizes(((64, 256),), (1, 8))
            for timing in speed.timings(name, place, sizes):
                tell({"class": name, "timing": asdict(timing)})
        except Exception as error:
            tell({"class": name, "reason": f"{type(error).__name__}: {first_line(error)}"})
        if place.on_gpu:
            torch.cuda.empty_cache()  # raises where the context is lost: the rest is then timed in another process


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--report", type=int, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--import", dest="modules", action="append", default=[])
    parser.add_argument("task", choices=("check", "speed", "alive"))
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args(words)
    # A parent that is killed leaves nothing behind on the GPU.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    def tell(line: dict[str, Any]) -> None:
        os.write(arguments.report, (json.dumps(line) + "\n").encode())

    tell({"step": "importing torch"})
    import torch

    from vllm_quant_kernels.cuda.verify.cases import Place

    for module in arguments.modules:
        tell({"step": f"importing {module}"})
        importlib.import_module(module)
    device = torch.device(arguments.device)
    # On a CPU the operators are their references: a rehearsal, small.
    sizes: dict[str, Any] = {} if device.type == "cuda" else {"large": False, "numbers": 4}
    place = Place(device, lambda text: tell({"step": text}), **sizes)

    def work() -> None:
        if arguments.task == "alive":
            float(torch.ones(2, device=place.device).sum())
        elif arguments.task == "speed":
            time_classes(arguments.names, place, tell)
        else:
            check_family(FAMILIES[arguments.names[0]], place)

    tell(outcome(work))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
