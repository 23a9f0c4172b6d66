"""The 32 threads of a warp: their registers, where they diverge and meet, their accesses to memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tests.cuda.ptx import matrices
from tests.cuda.ptx.arrays import Array
from tests.cuda.ptx.copies import CopyGroups
from tests.cuda.ptx.faults import PtxFault
from tests.cuda.ptx.shared import WINDOW
from tests.cuda.ptx.warpgroups import Products

if TYPE_CHECKING:
    from tests.cuda.ptx.machine import Cta
    from tests.cuda.ptx.translate import Block

ALL = np.ones(32, bool)


@dataclass(eq=False)
class Fragment:
    """Threads of a warp at one place. ``token``: what a step at which they wait remembers of their arrival."""

    pc: int
    mask: Array
    full: bool
    token: int | None = None
    parked: bool = False


class Warp:
    def __init__(self, cta: Cta, number: int, threads: int) -> None:
        self.cta, self.number, self.machine = cta, number, cta.machine
        self.memory = cta.machine.memory
        self.program = cta.machine.program
        self.constants = self.program.operands.constants
        self.registers = self.program.operands.poison()
        self.specials = cta.specials(number)
        self.live = np.arange(32) < threads
        self.fragments = [Fragment(0, self.live.copy(), bool(self.live.all()))]
        self.waited = np.full(32, not cta.machine.launch.dependent)
        self.copies = CopyGroups(self)
        self.products = Products(self)
        self.unfenced: list[Array] = []  # shared memory written through the generic proxy
        self.registers_per_thread = cta.machine.registers_per_thread
        self.cluster_tokens = np.full(32, -1)
        self.at = 0

    # Control flow

    def run(self, budget: int) -> bool:
        """Up to ``budget`` blocks; whether anything happened."""
        moved = False
        for _ in range(budget):
            ready = [f for f in self.fragments if not f.parked]
            if not ready:
                break
            f = self.machine.choose(ready)
            if not self.advance(f):
                others = [g for g in ready if g is not f]
                if not any(self.advance(g) for g in others):
                    break
            moved = True
        return moved

    def advance(self, f: Fragment) -> bool:
        block = self.program.blocks[f.pc]
        self.at = block.start
        if block.step:
            mask = f.mask & self.predicate(block) if block.guard else f.mask
            if (mask.all() or mask.any()) and not self.machine.step(self, f, block.step, mask):
                return False
            f.pc = block.start + 1
        else:
            if self.program.has_wgmma:
                self.products.check_block(block.writes, block.touches)
            if block.end > block.start:
                function = self.program.function(block, f.full)
                function(self, self.registers, self.specials, self.constants, f.mask)
            self.at = block.end
            self.follow(f, block)
        if len(self.fragments) > 1 and self.machine.converges_early:
            self.merge_equal()
        return True

    def predicate(self, block: Block) -> Array:
        assert block.guard
        slot, negated = block.guard
        return ~self.registers[slot] if negated else self.registers[slot]

    def follow(self, f: Fragment, block: Block) -> None:
        if block.branch is None:
            f.pc = block.end
            return
        taken = f.mask & self.predicate(block) if block.guard else f.mask
        if not taken.any():
            f.pc = block.end + 1
        elif (taken == f.mask).all():
            self.take(f, block)
        else:
            other = Fragment(0, taken, False)
            f.mask, f.full, f.pc = f.mask & ~taken, False, block.end + 1
            self.fragments.append(other)
            self.take(other, block)

    def take(self, f: Fragment, block: Block) -> None:
        if not block.leaves:
            f.pc = block.target
            return
        if not self.waited[f.mask].all():
            raise PtxFault("a thread of a dependent launch ends without waiting for the preceding kernel")
        self.live &= ~f.mask
        self.fragments.remove(f)
        for waiting in self.fragments:
            waiting.parked = False  # for threads that have now ended, in part
        if not self.live.any():
            if self.copies.copies:
                raise PtxFault("a warp ends with copies in flight")
            if self.products.groups or self.products.open:
                raise PtxFault("a warp ends with wgmmas in flight")
        self.cta.left(int(f.mask.sum()))

    def merge(self, together: list[Fragment]) -> Fragment:
        """Threads that have met."""
        first = together[0]
        for f in together[1:]:
            first.mask = first.mask | f.mask
            self.fragments.remove(f)
        first.full = bool(first.mask.all())
        return first

    def merge_equal(self) -> None:
        by_place: dict[int, list[Fragment]] = {}
        for f in self.fragments:
            if f.token is None and not f.parked:
                by_place.setdefault(f.pc, []).append(f)
        for together in by_place.values():
            if len(together) > 1:
                self.merge(together)

    def meet(self, f: Fragment) -> bool:
        """All live threads of the warp are at the place of ``f``, as one."""
        if (f.mask == self.live).all():
            return True
        f.parked = True
        waiting = [g for g in self.fragments if g.parked]
        if sum(int(g.mask.sum()) for g in waiting) < int(self.live.sum()):
            return False
        if any(g.pc != f.pc for g in waiting):
            raise PtxFault("threads of a warp wait for each other at different instructions")
        whole = self.merge(waiting)
        whole.parked, whole.token = False, None
        # The caller continues with ``f``, which may have been merged into another fragment.
        f.mask, f.full, f.parked = whole.mask, whole.full, False
        if whole is not f:
            self.fragments[self.fragments.index(whole)] = f
        return True

    # Memory, called by translated code

    def _expand(self, mask: Array, values: list[Array]) -> list[Array]:
        out = []
        for value in values:
            whole = np.zeros(32, value.dtype)
            whole[mask] = value
            out.append(whole)
        return out

    def load_param(self, mask: Array, addresses: Array, width: int, count: int) -> list[Array]:
        return self.machine.parameters.load(addresses, mask, width, count)

    def load_global(
        self, mask: Array, addresses: Array, width: int, count: int, read_only: bool = False
    ) -> list[Array]:
        if mask.all():
            return self.memory.load(addresses, width, count, self.waited, read_only)
        return self._expand(mask, self.memory.load(addresses[mask], width, count, self.waited[mask], read_only))

    def store_global(self, mask: Array, addresses: Array, width: int, values: list[Array]) -> None:
        self.memory.store(addresses[mask], width, [value[mask] for value in values], self.waited[mask])

    def load_shared(self, mask: Array, addresses: Array, width: int, count: int) -> list[Array]:
        if mask.all():
            return self.cta.shared.load(addresses, width, count, self.number)
        return self._expand(mask, self.cta.shared.load(addresses[mask], width, count, self.number))

    def store_shared(self, mask: Array, addresses: Array, width: int, values: list[Array]) -> None:
        self.unfenced.append(
            self.cta.shared.store(addresses[mask], width, [value[mask] for value in values], self.number)
        )

    def map_address(self, addresses: Array, ranks: Array) -> Array:
        return (addresses & np.uint32((1 << WINDOW) - 1)) | (ranks + np.uint32(1)) << np.uint32(WINDOW)

    def load_cluster(self, mask: Array, addresses: Array, width: int, count: int) -> list[Array]:
        assert count == 1
        out = np.zeros(32, f"u{width}")
        for lane in np.nonzero(mask)[0]:
            cta, address = self.cta.cluster_address(int(addresses[lane]))
            out[lane] = cta.shared.remote_load(np.array([address], np.uint32), width)[0]
        return [out]

    def ldmatrix(self, mask: Array, opcode: str, addresses: Array) -> list[Array]:
        self.need_all(mask, opcode)
        count = matrices.matrix_rows(opcode)
        rows = self.cta.shared.load(addresses[:count], 4, 4, self.number)
        return matrices.spread(rows)

    def mma(self, mask: Array, opcode: str, a: list[Array], b: list[Array], c: list[Array]) -> list[Array]:
        self.need_all(mask, opcode)
        return matrices.mma(opcode, a, b, c)

    def need_all(self, mask: Array, opcode: str) -> None:
        if not mask.all():
            raise PtxFault(f"{opcode} by {int(mask.sum())} of the 32 threads of a warp: they have not met")
