"""Option groups of an evaluation. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer


@dataclass(frozen=True)
class TextOptions:
    """What is scored; see ``evaluate_model``."""

    help_panel: ClassVar[str] = "Text"

    text: Annotated[list[Path], typer.Option(help="Held-out text; may be given several times.")] = field(
        default_factory=list
    )
    windows: Annotated[int, typer.Option(help="Windows of each text; 0 for all.")] = 64
    window_len: Annotated[int, typer.Option(help="Tokens per window.")] = 256
    seconds: Annotated[float | None, typer.Option(help="Stop scoring after this many seconds; fewer windows then.")] = (
        None
    )
    noise: Annotated[bool, typer.Option(help="Measure the noise floor of the original too.")] = True

    def arguments(self) -> dict[str, Any]:
        """As keywords of ``evaluate_model``."""
        return {
            "texts": self.text, "windows": self.windows or None, "window_len": self.window_len,
            "seconds": self.seconds, "noise": self.noise,
        }  # fmt: skip


@dataclass(frozen=True)
class EngineOptions:
    """How vLLM runs the model."""

    help_panel: ClassVar[str] = "vLLM"

    dtype: Annotated[str, typer.Option(help="vLLM's dtype.")] = "auto"
    quantization: Annotated[str | None, typer.Option(help="vLLM's quantization method, e.g. vqp_awq.")] = None
    tensor_parallel_size: Annotated[int, typer.Option(help="Ranks.")] = 1

    def arguments(self) -> dict[str, Any]:
        """As vLLM's engine arguments."""
        found: dict[str, Any] = {"dtype": self.dtype, "tensor_parallel_size": self.tensor_parallel_size}
        return found | ({"quantization": self.quantization} if self.quantization else {})


@dataclass(frozen=True)
class TaskOptions:
    """Tasks of lm-evaluation-harness instead of perplexity."""

    help_panel: ClassVar[str] = "lm-eval"

    tasks: Annotated[str | None, typer.Option(help="lm-eval tasks, by name, separated by commas.")] = None
    limit: Annotated[int | None, typer.Option(help="Documents of each task.")] = None
    task_folder: Annotated[Path | None, typer.Option(help="Folder with lm-eval task files of your own.")] = None

    @property
    def names(self) -> list[str]:
        """The tasks one by one."""
        return [name.strip() for name in (self.tasks or "").split(",") if name.strip()]
