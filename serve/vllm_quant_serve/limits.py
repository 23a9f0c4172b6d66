"""What a client of the serving port may send, and how long it may take: flags of ``vllm-quant serve``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, ClassVar

import typer


@dataclass(frozen=True)
class Limits:
    """Bounds on a request; 0 is no bound.

    Attributes:
        max_body: MiB of a request's body.
        header_timeout: seconds in which a request's head must arrive.
        body_timeout: seconds in which its body must arrive, after the head.
    """

    help_panel: ClassVar[str] = "Limits of the serving port"

    max_body: Annotated[float, typer.Option(min=0, help="MiB that a request's body may have; 0: no limit.")] = 64.0
    header_timeout: Annotated[
        float, typer.Option(min=0, help="Seconds in which a request's head must arrive; 0: no limit.")
    ] = 15.0
    body_timeout: Annotated[
        float, typer.Option(min=0, help="Seconds in which a request's body must arrive; 0: no limit.")
    ] = 120.0

    @property
    def body_bytes(self) -> int:
        """The longest body in bytes; 0 is no bound."""
        return int(self.max_body * 2**20)

    @classmethod
    def read(cls, metadata: Mapping[str, Any]) -> Limits:
        """From the launch metadata; what is not there has its default."""
        given = metadata.get("limits") or {}
        return cls(**{field.name: float(given[field.name]) for field in fields(cls) if field.name in given})

    def to_json(self) -> dict[str, float]:
        """For the launch metadata."""
        return asdict(self)
