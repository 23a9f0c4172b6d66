"""Writing files: what the system refuses becomes an ``OutputError``, and no half of a file stays under its name."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vllm_quant_plugin.errors import OutputError
from vllm_quant_plugin.interruption import Kept, leaving

_ROOM = "free some space"
_HINTS = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: "free some space, or have your quota raised",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.EROFS: "give a folder on a file system that can be written",
    errno.EACCES: "give a folder that you may write into",
    errno.EPERM: "give a folder that you may write into",
    errno.EIO: "check the disk",
    errno.ENAMETOOLONG: "give a shorter name",
}
_NUMBER = re.compile(r"\[Errno (\d+)\]|\(os error (\d+)\)")


def output_error(error: OSError, place: Path | str, kept: str = "") -> OutputError:
    """The refusal of a write as an expected failure.

    Args:
        place: what was written, named unless the error itself names a file.
        kept: what is kept and how to go on, for the hint.
    """
    reason = error.strerror or str(error) or type(error).__name__
    hint = _HINTS.get(error.errno or 0, "give another folder")
    return OutputError(f"{place}: cannot be written: {reason}", f"{hint}; {kept}" if kept else hint)


def refusal_inside(error: BaseException) -> OSError | None:
    """The refused write that an exception of a library came from, None where it came from something else.

    The chain of causes is looked through, then the text: libraries in Rust or in another process leave only that.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _HINTS:
            return seen
        seen = seen.__cause__ or seen.__context__
    found = _NUMBER.search(str(error))
    number = int(found[1] or found[2]) if found else 0
    return OSError(number, os.strerror(number)) if number in _HINTS else None


@contextmanager
def writing(place: Path | str, kept: str = "") -> Iterator[None]:
    """A refused write in the block is an ``OutputError``; see ``output_error``."""
    try:
        yield
    except OSError as error:
        raise output_error(error, place, kept) from None


def replace_text(path: Path, text: str) -> None:
    """Write a file under another name and rename it.

    Raises:
        OSError: it cannot be written; what was there before is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        temporary.write_text(text, "utf-8")
        temporary.rename(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


@contextmanager
def temporary_folder(prefix: str, beside: Path | None = None) -> Iterator[Path]:
    """A folder that is gone at the end of the block, also when a signal ends the command.

    Args:
        beside: where it is made; None for the system's temporary folder.

    Raises:
        OutputError: it cannot be made, or what is written into it is refused.
    """
    with writing(beside or tempfile.gettempdir()):
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=beside))

    def remove() -> Kept | None:
        shutil.rmtree(folder, ignore_errors=True)
        return None

    try:
        with leaving(remove):
            yield folder
    except OSError as error:
        if error.errno in _HINTS:
            raise output_error(error, folder) from None
        raise
    finally:
        remove()
