"""vLLM's own command line as a supervised child: ``python -m vllm_quant_serve.server serve MODEL [flags]``.

This runs ``vllm.entrypoints.cli.main``, the function behind the ``vllm`` console command, in a process that dies with
the supervisor (Linux ``PR_SET_PDEATHSIG``), even where the guard is gone too. API keys come in the environment and are
added to the argument list in memory, so that no process listing shows them.
"""

from __future__ import annotations

import argparse
import ctypes
import difflib
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from vllm_quant_kernels import env
from vllm_quant_plugin.cpu_wheel import answer_for_cpu_wheel

SUPERVISOR_PID = "VQP_SUPERVISOR_PID"
API_KEYS = "VQP_API_KEYS"
# How a line begins that suggests a flag; the launcher repeats it.
SUGGESTION = "did you mean "
_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Ask the kernel for SIGKILL when the parent dies, and leave at once when ``parent`` is gone already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def main() -> None:
    supervisor = env.pop(SUPERVISOR_PID)
    if supervisor:
        die_with_parent(int(supervisor))
    keys = json.loads(env.pop(API_KEYS) or "[]")
    if keys:
        sys.argv += ["--api-key", *keys]
    answer_for_cpu_wheel()
    suggest_flags()
    from vllm_quant_serve.compat.command_line import main as vllm_main

    sys.argv[0] = "vllm"
    vllm_main()


def suggest_flags() -> None:
    """Let argparse's errors come with suggestions, from the flags of whichever parser reports one."""
    original = argparse.ArgumentParser.error

    def error(parser: argparse.ArgumentParser, message: str) -> NoReturn:
        print(*suggestions(sys.argv[1:], option_names(parser)), sep="\n", file=sys.stderr)
        original(parser, message)

    argparse.ArgumentParser.error = error  # type: ignore[assignment,method-assign]


def option_names(parser: argparse.ArgumentParser) -> list[str]:
    """The long names of all flags of a parser and its subcommands."""
    names = []
    for action in parser._actions:
        names += [name for name in action.option_strings if name.startswith("--")]
        if isinstance(action, argparse._SubParsersAction):
            names += [name for one in action.choices.values() for name in option_names(one)]
    return names


def suggestions(words: Sequence[str], known: Sequence[str]) -> list[str]:
    """A line for each flag that vLLM does not know and that resembles one that it does."""
    lines = []
    for word in words:
        name = word.partition("=")[0].replace("_", "-")
        # A dotted name sets a field of a flag, and an unambiguous beginning counts as the flag.
        if not name.startswith("--") or any(one.startswith(name.partition(".")[0]) for one in known):
            continue
        near = difflib.get_close_matches(name, known, 1, 0.75)
        if near:
            lines.append(f"{SUGGESTION}{near[0]} (for {name})")
    return lines


# vLLM's processes are spawned, which imports this module again under another name.
if __name__ == "__main__":
    main()
