"""The process that answers one ``POST /plan``: the question on stdin, the status and the document on stdout.

A question can be made to take any time and any memory, so it never runs where something else would suffer: this process
limits itself before it reads a byte, and its parent kills it when its time is over or nobody waits any more. No torch.
"""

from __future__ import annotations

import json
import os
import resource
import sys

from vllm_quant_serve.server import die_with_parent

MEMORY = 1 << 30
# Seconds of one core; the parent's clock (``http.SECONDS``) is the stricter limit on an idle machine.
CPU_SECONDS = 15


def confine() -> None:
    """Limit this process, and let it go first and yield to all others; it ends with its parent."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(10)
    die_with_parent(os.getppid())
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass  # not Linux, or a sandbox that forbids it
    # Keys of the server are no business of a plan.
    for name in ("VLLM_API_KEY", "VQP_ADMIN_TOKEN"):
        os.environ.pop(name, None)


def main() -> int:
    confine()
    from vllm_quant_serve.plan.answer import answer, failure

    try:
        status, document = answer(sys.stdin.buffer.read())
        text = json.dumps({"status": status, "document": document})
    except (MemoryError, OverflowError, RecursionError):
        status, document = failure(422, f"the plan needs more than {MEMORY >> 20} MiB", "ask for a smaller one")
        text = json.dumps({"status": status, "document": document})
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
