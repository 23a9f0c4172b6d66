"""Where the backends' environments live, how one is made from its shipped lock, and how it is found. No torch.

    <home>/llmcompressor/            a virtual environment
    <home>/llmcompressor/backend.json   which lock it was made from; the last thing written

An environment is made beside its final place and renamed. ``<home>`` is ``VQP_BACKENDS_HOME``, or
``vllm-quant-plugin/backends`` in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_quant_kernels import env
from vllm_quant_plugin.errors import BackendError, UsageError

MARK = "backend.json"
# The "+cpu" builds of torch live on PyTorch's own index; only torch's page of it is looked at.
TORCH_CPU_LINKS = env.BY_NAME["VQP_TORCH_CPU_LINKS"].default
_LOG_TAIL = 300


@dataclass(frozen=True)
class Backend:
    """A library that can be installed.

    Attributes:
        name: as on the command line.
        package: its distribution, whose version is recorded and which is imported as a test after installation.
        what: one human-readable line.
    """

    name: str
    package: str
    what: str

    def lock(self, *, cuda: bool) -> Path:
        """The shipped lock for a machine with or without an NVIDIA driver."""
        return Path(__file__).with_name(f"{self.name}{'-cuda' if cuda else ''}.txt")


@dataclass(frozen=True)
class Installed:
    """A usable environment.

    Attributes:
        version: of the library.
        outdated: made from another lock than the one that ships now.
    """

    name: str
    path: Path
    version: str
    outdated: bool

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.path / "bin" / "python"


BACKENDS = {
    "llmcompressor": Backend(
        "llmcompressor", "llmcompressor", "llm-compressor: SmoothQuant, static INT8 and FP8, KV-cache scales"
    ),
}


def home() -> Path:
    """The folder that holds the environments."""
    chosen = env.text("VQP_BACKENDS_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "vllm-quant-plugin" / "backends"


def get_backend(name: str) -> Backend:
    """Raises UsageError for a name that is none."""
    if name not in BACKENDS:
        raise UsageError(f"backend {name!r} is not known", f"one of {', '.join(BACKENDS)}")
    return BACKENDS[name]


def has_nvidia_driver() -> bool:
    """Whether ``nvidia-smi`` answers."""
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _digest(lock: Path) -> str:
    return hashlib.sha256(lock.read_bytes()).hexdigest()


def find_backend(name: str) -> Installed | None:
    """The installed environment, None when there is none that is complete."""
    backend, folder = get_backend(name), home() / name
    try:
        mark: dict[str, Any] = json.loads((folder / MARK).read_text("utf-8"))
        version, digest = str(mark["version"]), str(mark["lock_sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    known = {_digest(backend.lock(cuda=cuda)) for cuda in (False, True)}
    found = Installed(name, folder, version, digest not in known)
    return found if found.python.exists() else None


def require_backend(name: str) -> Installed:
    """The installed environment.

    Raises:
        BackendError: not installed; the hint is the command that installs it.
    """
    found = find_backend(name)
    if found is None:
        raise BackendError(f"{name} is not installed", f"run `vllm-quant backends install {name}`")
    return found


def _uv() -> str | None:
    found = shutil.which("uv")
    if found and subprocess.run([found, "--version"], capture_output=True).returncode == 0:
        return found
    return None


def _commands(path: Path, lock: Path) -> list[list[str]]:
    """What makes the environment: with uv where it is found, else with venv and pip."""
    python, uv = str(path / "bin" / "python"), _uv()
    if uv:
        return [
            [uv, "venv", "--quiet", "--no-project", "--python", sys.executable, str(path)],
            [uv, "pip", "install", "--quiet", "--python", python, "--no-deps", "--compile-bytecode", "-r", str(lock)],
        ]
    return [
        [sys.executable, "-m", "venv", str(path)],
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "-r", str(lock)],
    ]


def _environment(links: str | None = None) -> dict[str, str]:
    """The installers' environment: uv gets the same settings as pip; pip separates by spaces and uv by commas."""
    found = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    known = found.get("PIP_FIND_LINKS", "").split()
    if links:
        found["PIP_FIND_LINKS"] = " ".join([*known, links])
        known.append(links)
    if known and (links or "UV_FIND_LINKS" not in found):
        found["UV_FIND_LINKS"] = ",".join(filter(None, [found.get("UV_FIND_LINKS"), *known]))
    for pip, uv in (("PIP_INDEX_URL", "UV_DEFAULT_INDEX"), ("PIP_EXTRA_INDEX_URL", "UV_INDEX")):
        if found.get(pip) and not found.get(uv):
            found[uv] = found[pip]
    return found


def _run(command: Sequence[str], environment: dict[str, str]) -> str | None:
    """None on success, else the most informative line of its output."""
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    reasons = [line for line in lines if "rror" in line or "because" in line.lower()]
    return (reasons or lines or ["no output"])[-1][:_LOG_TAIL]


def _make(backend: Backend, path: Path, lock: Path) -> None:
    create, install = _commands(path, lock)
    reason = _run(create, _environment())
    if reason is None:
        reason = _run(install, _environment())
        if reason is not None and "+cpu" in lock.read_text("utf-8"):
            links = env.text("VQP_TORCH_CPU_LINKS") or TORCH_CPU_LINKS
            if _run(install, _environment(links)) is None:
                reason = None
    if reason is not None:
        raise BackendError(f"{backend.name} cannot be installed: {reason}", "check the network and the package index")


def _version(backend: Backend, python: Path) -> str:
    """Import the library in its environment; returns its version."""
    program = f"import importlib.metadata as m, {backend.package}; print('VERSION', m.version('{backend.package}'))"
    done = subprocess.run([str(python), "-I", "-c", program], capture_output=True, text=True)
    found = done.stdout.rpartition("VERSION ")[2].strip()
    if done.returncode or not found:
        lines = done.stderr.strip().splitlines() or ["no output"]
        raise BackendError(f"{backend.name} does not import: {lines[-1][:_LOG_TAIL]}", "report this as a bug")
    return found


def install_backend(name: str) -> Installed:
    """Make the environment of ``name`` anew from its lock; an old one stays until the new one works.

    Raises:
        UsageError: no such backend.
        BackendError: the packages cannot be had, or do not import.
    """
    backend = get_backend(name)
    final = home() / name
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise BackendError(f"{final.parent}: {err.strerror}", "set VQP_BACKENDS_HOME to a writable folder") from None
    work, old = (final.with_name(f".{name}.{what}-{os.getpid()}") for what in ("partial", "old"))
    lock = backend.lock(cuda=has_nvidia_driver())
    try:
        _make(backend, work, lock)
        version = _version(backend, work / "bin" / "python")
        mark = {"name": name, "version": version, "lock_sha256": _digest(lock)}
        (work / MARK).write_text(json.dumps(mark, indent=2) + "\n", "utf-8")
        if final.exists():
            final.rename(old)
        work.rename(final)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return require_backend(name)


def remove_backend(name: str) -> bool:
    """Delete the environment of ``name`` and what an interrupted installation left; whether there was one."""
    get_backend(name)
    there = (home() / name).exists()
    for path in [home() / name, *home().glob(f".{name}.partial-*"), *home().glob(f".{name}.old-*")]:
        shutil.rmtree(path, ignore_errors=True)
    return there
