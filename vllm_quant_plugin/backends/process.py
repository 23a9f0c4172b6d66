"""A library's worker as a child process: a job file in, progress as JSON lines on a pipe, a log file. No torch.

The child keeps the library's imports, threads, output and memory away from the caller.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from vllm_quant_plugin.backends import llmcompressor_worker
from vllm_quant_plugin.backends.store import require_backend
from vllm_quant_plugin.console import Progress
from vllm_quant_plugin.errors import BackendError

_LOG_LINES = 400


@dataclass(frozen=True)
class Worker:
    """How to start a library's worker.

    Attributes:
        command: without its arguments, the job file and the descriptor for events.
        environment: of the process.
    """

    command: tuple[str, ...]
    environment: dict[str, str]


def find_worker(library: str, *, own_environment: bool) -> Worker:
    """The worker of a library in this Python environment, or in the one that ``backends install`` made.

    Raises:
        BackendError: not installed.
    """
    if own_environment:
        clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
        python = str(require_backend(library).python)
        return Worker((python, "-I", str(Path(llmcompressor_worker.__file__).resolve())), clean)
    # What this process imports from a relative path must still be found from the job's folder.
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(p).resolve()) for p in sys.path if p)}
    return Worker((sys.executable, "-m", "vllm_quant_plugin.backends.library_worker"), found)


def _last_reason(log: Path) -> str:
    """The most informative line of a failure's log: the last that is no warning or frame."""
    lines = log.read_text("utf-8", errors="replace").splitlines()[-_LOG_LINES:]
    for line in reversed(lines):
        if line.strip() and not line.startswith(" ") and "Warning" not in line:
            return line.strip()[:300]
    return "no output"


def run_worker(worker: Worker, job: Path, log: Path, progress: Progress) -> int:
    """Run the worker to its end; returns its peak resident memory in bytes.

    Raises:
        BackendError: it failed; the message is the most informative line of its log.
    """
    read_end, write_end = os.pipe()
    peak = 0
    # Libraries write log files where they are started; the job's folder goes away with them.
    with log.open("wb") as output:
        child = subprocess.Popen(
            [*worker.command, str(job.absolute()), str(write_end)], stdin=subprocess.DEVNULL, stdout=output,
            stderr=output, pass_fds=(write_end,), cwd=job.parent, env=worker.environment,
        )  # fmt: skip
        os.close(write_end)
        try:
            with os.fdopen(read_end) as events:
                for line in events:
                    event = json.loads(line)
                    peak = max(peak, event.get("peak", 0))
                    if "done" in event:
                        progress(event["what"], event["done"], event["total"])
            code = child.wait()
        except BaseException:
            child.kill()
            child.wait()
            raise
    if code:
        raise BackendError(f"the quantization library failed: {_last_reason(log)}", "try --backend builtin")
    return peak


def peak_memory() -> int:
    """Highest resident memory of this process so far, bytes.

    From /proc where there is one: getrusage also counts what the program was that started this one.
    """
    try:
        for line in Path("/proc/self/status").read_text("utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
