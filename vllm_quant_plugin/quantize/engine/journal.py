"""Finished layers kept on disk, so that a killed run can be resumed.

    state.json                fingerprint, number of finished layers, errors; the last thing written
    layer-00003.safetensors   what the layer became
    hidden-00004.safetensors  what enters the next layer, verbatim

Everything is written under another name and renamed. ``state.json`` names only files that are
complete, so a kill at any moment leaves the state before or after a layer, never between.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from vllm_quant_plugin.errors import OutputError, ResumeError
from vllm_quant_plugin.quantize.engine.fingerprint import differences
from vllm_quant_plugin.quantize.io.output import STATE
from vllm_quant_plugin.quantize.io.shards import write_tensors
from vllm_quant_plugin.writing import writing


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Journal:
    """The state of one run.

    Args:
        folder: made when missing; one process at a time.
        fingerprint: everything that decides the result. A state with another one is refused.
        resume: start from what is there; otherwise it is deleted.

    Attributes:
        folder: where it is kept.
        layers: finished layers.
        errors: of the finished layers' modules.
        seen: calibration tokens that reached each of them.

    Raises:
        OutputError: another process is writing here, nothing can be written, or the state is damaged.
        ResumeError: the state belongs to another run; the message says how the two differ.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any], *, resume: bool) -> None:
        self.folder = folder
        self._fingerprint = json.loads(json.dumps(fingerprint))
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            # Held until the process ends, however it ends.
            self._lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise OutputError(f"{folder}: another run is writing here", "wait for it, or give another -o") from None
        self.layers = 0
        self.errors: dict[str, float] = {}
        self.seen: dict[str, int] = {}
        if not resume:
            (folder / STATE).unlink(missing_ok=True)
            return
        try:
            self._read()
        except (OutputError, ResumeError):
            self.close()
            raise

    def _read(self) -> None:
        path = self.folder / STATE
        if not path.exists():
            return
        try:
            state = json.loads(path.read_text("utf-8"))
            found, self.layers, self.errors = state["fingerprint"], int(state["layers"]), dict(state["errors"])
            self.seen = dict(state["seen"])
        except (OSError, ValueError, KeyError, TypeError):
            raise OutputError(f"{path}: damaged", "start over without --resume") from None
        differing = differences(found, self._fingerprint)
        if differing:
            raise ResumeError(
                f"the interrupted run differs: {'; '.join(differing)}",
                "repeat its flags and inputs, or start over without --resume",
            )

    def _save(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        temporary = self.folder / f"{name}.new"
        write_tensors(temporary, tensors)
        temporary.rename(self.folder / name)

    def commit(
        self,
        index: int,
        tensors: Mapping[str, torch.Tensor],
        errors: Mapping[str, float],
        hidden: list[torch.Tensor],
        seen: Mapping[str, int],
    ) -> None:
        """Record layer ``index`` as finished; ``hidden`` is the input of the next one."""
        self._save(f"layer-{index:05d}.safetensors", tensors)
        self._save(f"hidden-{index + 1:05d}.safetensors", {f"{i:06d}": h for i, h in enumerate(hidden)})
        self.layers = index + 1
        self.errors.update(errors)
        self.seen.update(seen)
        state = {
            "fingerprint": self._fingerprint, "layers": self.layers, "errors": self.errors, "seen": self.seen
        }  # fmt: skip
        temporary = self.folder / f"{STATE}.new"
        temporary.write_text(json.dumps(state), "utf-8")
        _sync(temporary)
        temporary.rename(self.folder / STATE)
        _sync(self.folder)
        (self.folder / f"hidden-{index:05d}.safetensors").unlink(missing_ok=True)

    def hidden(self) -> list[torch.Tensor]:
        """The input of the first unfinished layer."""
        with safe_open(str(self.folder / f"hidden-{self.layers:05d}.safetensors"), framework="pt") as file:
            return [file.get_tensor(name) for name in sorted(file.keys())]

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor of the finished layers, one in memory at a time."""
        for index in range(self.layers):
            with safe_open(str(self.folder / f"layer-{index:05d}.safetensors"), framework="pt") as file:
                for name in sorted(file.keys()):
                    yield name, file.get_tensor(name)

    def close(self) -> None:
        """Release the lock on the folder."""
        os.close(self._lock)
