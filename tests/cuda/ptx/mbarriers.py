"""mbarrier objects: pending arrivals and transaction bytes, phases by parity."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.cuda.ptx.faults import PtxFault

LARGEST = (1 << 20) - 1


@dataclass
class Mbarrier:
    """``fenced``: its initialization has been made visible to the asynchronous proxy and the cluster. ``remote``: other
    CTAs arrive at it. ``filled``: the shared memory that copies have filled in this phase, which its end releases."""

    count: int
    warp: int
    epoch: int
    pending: int = 0
    bytes: int = 0
    phase: int = 0
    fenced: bool = False
    remote: bool = False
    filled: list[object] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 1 <= self.count <= LARGEST:
            raise PtxFault(f"an mbarrier of {self.count} arrivals")
        self.pending = self.count

    def expect(self, size: int) -> None:
        self.bytes += size
        self.check_bytes()

    def complete(self, size: int) -> bool:
        """Bytes have arrived. Whether the phase has ended."""
        self.bytes -= size
        self.check_bytes()
        return self.advance()

    def check_bytes(self) -> None:
        if abs(self.bytes) > LARGEST:
            raise PtxFault(f"an mbarrier expects {self.bytes} bytes: out of its range")

    def arrive(self, count: int = 1) -> bool:
        """Whether the phase has ended."""
        if count > self.pending:
            raise PtxFault("more arrivals at an mbarrier than it was initialized for")
        self.pending -= count
        return self.advance()

    def advance(self) -> bool:
        if self.pending or self.bytes:
            return False
        self.phase += 1
        self.pending = self.count
        return True

    def completed(self, parity: int) -> bool:
        """Whether the phase of this parity is the one before the current."""
        return (self.phase & 1) != (parity & 1)
