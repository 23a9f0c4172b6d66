"""Verdicts as files in the user's cache, one a key. Whatever is not what this module wrote is no verdict. No torch."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from tempfile import mkstemp

from vllm_quant_kernels import env
from vllm_quant_kernels.cuda.verify.machine import Key
from vllm_quant_kernels.cuda.verify.verdict import Verdict, VerdictError

MAX_BYTES = 1 << 20


def folder() -> Path:
    """Where verdicts are kept."""
    return Path(env.text("VQP_VERDICTS") or env.BY_NAME["VQP_VERDICTS"].default).expanduser()


def _slug(gpu: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")[:80] or "gpu"


def path_of(key: Key) -> Path:
    """The file of the verdict that holds for ``key``."""
    digest = hashlib.sha256("\0".join(astuple(key)).encode()).hexdigest()[:16]
    return folder() / f"{_slug(key.gpu)}-{digest}.json"


def files_of(gpu: str) -> list[Path]:
    """Every file of verdicts on this model of GPU, whatever else they hold for; the newest first."""
    with suppress(OSError):
        pattern = re.compile(rf"{re.escape(_slug(gpu))}-[0-9a-f]{{16}}\.json")
        found = [path for path in folder().iterdir() if pattern.fullmatch(path.name)]
        return sorted(found, key=lambda path: path.lstat().st_mtime, reverse=True)
    return []


def _load(path: Path) -> Verdict:
    """Raises VerdictError for what is no verdict, OSError for what cannot be read."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise VerdictError("no regular file")
        if found.st_uid not in (os.geteuid(), 0) or found.st_mode & stat.S_IWOTH:
            raise VerdictError("a file that others can write")
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise VerdictError("too long")
    try:
        return Verdict.from_json(json.loads(data))
    except (ValueError, RecursionError) as error:  # JSON, UTF-8 or VerdictError
        raise VerdictError(str(error) if isinstance(error, VerdictError) else "not JSON") from None


def read(key: Key) -> tuple[Verdict | None, str]:
    """The verdict that holds for ``key``; without one None, and why in one line."""
    path = path_of(key)
    try:
        found = _load(path)
    except FileNotFoundError:
        return None, _stale(key)
    except VerdictError as error:
        return None, f"{path} is no verdict: {error}"
    except OSError as error:
        return None, f"{path} cannot be read: {error.strerror}"
    if found.key != key:
        return None, f"{path} is no verdict: made for another {', '.join(found.key.differences(key))}"
    return found, ""


def _stale(key: Key) -> str:
    """Why there is no verdict: never made, or made for something else."""
    for path in files_of(key.gpu):
        with suppress(VerdictError, OSError):
            old = _load(path).key
            return f"the verdict on this GPU is stale: another {', '.join(old.differences(key))}"
    return "no verdict on this GPU"


def write(verdict: Verdict) -> Path:
    """Store a verdict in place of the one with the same key, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    path = path_of(verdict.key)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = mkstemp(prefix=".new-", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(json.dumps(verdict.to_json(), indent=1) + "\n")
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    return path


def forget(gpu: str) -> list[Path]:
    """Delete every verdict on this model of GPU; returns what was deleted. Raises OSError."""
    found = files_of(gpu)
    for path in found:
        path.unlink(missing_ok=True)
    return found
