"""The plain C libraries: where they are, and whether they fit this package. No torch."""

from __future__ import annotations

import ctypes
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from vllm_quant_kernels import env


class LibraryError(RuntimeError):
    """A native library is absent, of another version, or asked for what this machine lacks."""


def library_path(name: str, override: str) -> Path | None:
    """The library ``name``, beside the package or in site-packages (editable install); None when there is none.

    Args:
        override: the environment variable that names another build of it.
    """
    path = env.text(override)
    if path:
        return Path(path)
    for folder in (Path(__file__).parent, Path(sysconfig.get_paths()["platlib"]) / "vllm_quant_kernels"):
        if (folder / name).is_file():
            return folder / name
    return None


def open_library(path: Path | None, name: str, version_function: str, version: int, build: str) -> ctypes.CDLL:
    """Load the library at ``path``.

    Args:
        version_function: the exported function that returns the library's ABI version.
        version: the ABI version that this package calls.
        build: how to build the library, for the message when there is none.

    Raises:
        LibraryError: the library is absent, cannot be loaded, or has another ABI version.
    """
    if path is None:
        raise LibraryError(f"{name} was not built: {build}")
    try:
        library = ctypes.CDLL(str(path))
        found = getattr(library, version_function)()
    except (OSError, AttributeError) as error:
        raise LibraryError(f"{path} cannot be loaded: {error}") from error
    if found != version:
        raise LibraryError(f"{path} has version {found}, this package needs {version}: build it again")
    return library


def raise_error(code: int, messages: Mapping[int, str]) -> NoReturn:
    """Raise the ValueError that an error ``code`` of a native call stands for."""
    raise ValueError(messages.get(code, f"native kernel failed with code {code}"))
