"""The output folder: built beside its final place, renamed when complete."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from vllm_quant_plugin.checkpoint import INDEX_NAME
from vllm_quant_plugin.errors import OutputError
from vllm_quant_plugin.interruption import Kept, command_line, deferred, leaving
from vllm_quant_plugin.writing import output_error

RECORD_NAME = "quantization.json"
# Small files that belong to a model: tokenizer, generation defaults, chat template, licence, remote code.
_AUXILIARY = ("*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt", "*.py", "LICENSE*", "NOTICE*")
_OURS = ("config.json", INDEX_NAME, RECORD_NAME, "quantize_config.json", "quality.json")
# Of a journal: what is complete of it.
STATE = "state.json"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def free_disk(folder: Path) -> int:
    """Free bytes where ``folder`` is or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def total_memory() -> int:
    """Physical memory of the machine, bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step (Linux renameat2); False where the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    code = rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    return bool(code == 0)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class OutputFolder:
    """Context manager that yields a temporary folder and moves it to ``final`` when the block succeeds.

    Attributes:
        journal: folder beside it for the state of a run that can be resumed; gone on success, kept otherwise
            once it holds a finished layer.
        resumable: whether the journal's state is this run's.

    Args:
        final: where the result goes.
        overwrite: replace what is there.
        source: the input model, which is never replaced.
        resumable: the run starts from the journal's state.

    Raises:
        OutputError: it exists, is no model folder, is the input, or cannot be written.
    """

    def __init__(self, final: Path, *, overwrite: bool, source: Path, resumable: bool = False) -> None:
        self.final = final.expanduser().absolute()
        self._overwrite = overwrite
        self.path = self.final.with_name(f".{self.final.name}.partial-{os.getpid()}")
        self.journal = self.final.with_name(f".{self.final.name}.resume")
        self.resumable = resumable
        self._leaving = ExitStack()
        self._check(source)

    def _check(self, source: Path) -> None:
        final = self.final
        if final.exists():
            if final.resolve() == source.resolve():
                raise OutputError(f"{final}: the output is the input", "give another -o")
            if not self._overwrite:
                raise OutputError(f"{final}: exists already", "give another -o, or --overwrite to replace it")
            inside = list(final.iterdir()) if final.is_dir() else None
            if inside is None or (inside and not (final / "config.json").exists()):
                raise OutputError(f"{final}: not a model folder, so it is not replaced", "give another -o")
        parent = final.parent
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise OutputError(f"{final}: cannot write into {parent}", "give an -o in a writable folder")

    def __enter__(self) -> Path:
        try:
            self._remove_remains()
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise output_error(err, self.path) from None
        self._leaving.enter_context(leaving(self._abandon))
        return self.path

    def _abandon(self) -> Kept | None:
        """Delete what nothing can go on from; what is kept."""
        shutil.rmtree(self.path, ignore_errors=True)
        if not (self.journal / STATE).exists():
            shutil.rmtree(self.journal, ignore_errors=True)
        layers = self._finished_layers()
        if not layers:
            return None
        command = command_line("--resume")
        finished = "1 finished layer is" if layers == 1 else f"{layers} finished layers are"
        return Kept(f"{finished} kept in {self.journal}", f"resume with: {command}" if command else "resume it")

    def _finished_layers(self) -> int:
        """Layers of this run that another one can start from."""
        try:
            return int(json.loads((self.journal / STATE).read_text("utf-8"))["layers"]) if self.resumable else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def _remove_remains(self) -> None:
        """Delete what runs that were killed left beside the output."""
        for what in ("partial", "old"):
            for path in self.final.parent.glob(f".{self.final.name}.{what}-*"):
                number = path.name.rpartition("-")[2]
                if number.isdigit() and (int(number) == os.getpid() or not _alive(int(number))):
                    shutil.rmtree(path)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Runs ``_abandon`` and tells ``Interrupted`` what is kept.
        self._leaving.__exit__(kind, value, trace)
        if kind is not None:
            kept = self._abandon()
            if isinstance(value, OSError) and value.errno is not None:
                raise output_error(value, self.final, f"{kept.what}; {kept.then}" if kept else "") from None
            return
        try:
            # Within it a signal would find the output neither missing nor complete.
            with deferred():
                self._finish()
        except OSError as err:
            self._abandon()
            raise output_error(err, self.final) from None

    def _finish(self) -> None:
        """The folder gets its name."""
        if not self.final.exists():
            self.path.rename(self.final)
        elif _exchange(self.path, self.final):
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            old = self.final.with_name(f".{self.final.name}.old-{os.getpid()}")
            self.final.rename(old)
            self.path.rename(self.final)
            shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(self.journal, ignore_errors=True)


def copy_auxiliary_files(source: Path, target: Path) -> list[str]:
    """Copy tokenizer, generation and licence files; returns their names."""
    names = sorted({p.name for pattern in _AUXILIARY for p in source.glob(pattern) if p.is_file()} - set(_OURS))
    for name in names:
        shutil.copyfile(source / name, target / name)
    return names
