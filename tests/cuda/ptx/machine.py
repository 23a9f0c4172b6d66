"""A launch: its CTAs cluster by cluster, the warps of a cluster in random order, copies that arrive early or late."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tests.cuda.ptx.arrays import Array
from tests.cuda.ptx.faults import PtxFault
from tests.cuda.ptx.mbarriers import Mbarrier
from tests.cuda.ptx.memory import GlobalMemory
from tests.cuda.ptx.operands import PARAMETER_WINDOW
from tests.cuda.ptx.parameters import Parameters
from tests.cuda.ptx.shared import BASE, WINDOW, SharedMemory
from tests.cuda.ptx.steps import STEP
from tests.cuda.ptx.tensor_maps import TensorMap
from tests.cuda.ptx.translate import Program, Step
from tests.cuda.ptx.warp import Fragment, Warp

REGISTERS = 65536  # of an SM
SHARED_LIMIT = {"sm_80": 163 << 10, "sm_89": 99 << 10, "sm_90a": 227 << 10}
LARGEST_CLUSTER = 8  # that every device of sm_90 launches


@dataclass
class Launch:
    """What the host passes. ``maps``: tensor maps by their offset among the parameters."""

    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int
    parameters: bytes
    cluster: int = 1
    dependent: bool = False
    maps: dict[int, TensorMap] = field(default_factory=dict)


class Cta:
    def __init__(self, machine: Machine, index: tuple[int, int, int], rank: int) -> None:
        self.machine, self.index, self.rank = machine, index, rank
        self.shared = SharedMemory(machine.launch.shared_bytes)
        self.mbarriers: dict[int, Mbarrier] = {}
        self.sequences: dict[int, list[tuple[int, int | None, int, bool]]] = {}
        self.maxnreg: dict[int, list[str]] = {}
        self.live = machine.launch.threads
        self.arrived = self.phase = 0
        self.pool = 0
        self.cluster: list[Cta] = []
        self.warps = [
            Warp(self, number, min(32, self.live - 32 * number)) for number in range(-(-machine.launch.threads // 32))
        ]

    def specials(self, warp: int) -> dict[str, Array]:
        launch = self.machine.launch
        values: dict[str, int | Array] = {
            "tid.x": np.arange(32) + 32 * warp, "tid.y": 0, "tid.z": 0, "ntid.x": launch.threads, "ntid.y": 1,
            "ntid.z": 1, "laneid": np.arange(32), "cluster_ctarank": self.rank,
            **{f"ctaid.{axis}": self.index[i] for i, axis in enumerate("xyz")},
            **{f"nctaid.{axis}": launch.grid[i] for i, axis in enumerate("xyz")},
        }  # fmt: skip
        return {name: np.full(32, value).astype(np.uint32) for name, value in values.items()}

    def cluster_address(self, address: int) -> tuple[Cta, int]:
        """The CTA and the address in it of a shared::cluster address."""
        rank = (address >> WINDOW) - 1
        if rank < 0:
            return self, address
        if rank >= len(self.cluster):
            raise PtxFault(f"shared memory of CTA {rank} of a cluster of {len(self.cluster)}")
        return self.cluster[rank], address & (1 << WINDOW) - 1

    def mbarrier(self, address: int, warp: Warp, asynchronous: bool = False) -> Mbarrier:
        offset = address - BASE
        if self.shared.ended:
            raise PtxFault("an mbarrier is used of a CTA that has ended")
        if offset not in self.mbarriers:
            raise PtxFault(f"nothing initialized an mbarrier at offset {offset}")
        bar = self.mbarriers[offset]
        if (asynchronous or warp.cta is not self) and not bar.fenced:
            raise PtxFault("no fence made the initialization of an mbarrier visible to copies and the cluster")
        if warp.cta is not self and bar.epoch >= self.shared.cluster_epoch:
            raise PtxFault("an mbarrier of another CTA is used before a barrier of the cluster made it visible")
        if (warp.cta is self and bar.warp != warp.number) and bar.epoch == self.shared.epoch:
            raise PtxFault("an mbarrier is used before a barrier made its initialization visible")
        return bar

    def phase_ended(self, bar: Mbarrier) -> None:
        for words in bar.filled:
            self.shared.end_fill(words)  # type: ignore[arg-type]
        bar.filled.clear()

    def barrier_passed(self) -> None:
        self.shared.epoch += 1
        self.shared.releases += 1

    def left(self, threads: int) -> None:
        self.live -= threads
        if self.live:
            return
        if self.shared.filling.any():
            raise PtxFault("a CTA ends while copies still fill its shared memory")
        self.shared.ended = True


class Machine:
    """``converges_early``: threads that have diverged meet again as soon as they are at the same instruction; otherwise
    only where an instruction makes them wait for each other."""

    def __init__(self, program: Program, memory: GlobalMemory, launch: Launch, seed: int = 0) -> None:
        self.program, self.memory, self.launch = program, memory, launch
        self.random = random.Random(seed)
        self.converges_early = seed % 2 == 0
        self.likely_early = self.random.choice([0.0, 0.5, 1.0])
        self.check()
        self.parameters = Parameters(launch.parameters)
        kernel = program.kernel
        self.registers_per_thread = min(255, REGISTERS // (kernel.max_threads * kernel.min_ctas)) // 8 * 8
        self.pending: list[Callable[[], None]] = []
        self.ctas: list[Cta] = []
        self.cluster_arrived = self.cluster_phase = 0

    def check(self) -> None:
        """What a launch refuses."""
        launch, kernel = self.launch, self.program.kernel
        limit = SHARED_LIMIT[kernel.target]
        if launch.threads > kernel.max_threads:
            raise PtxFault(f"{launch.threads} threads, the kernel is bound to {kernel.max_threads}")
        if launch.shared_bytes > limit:
            raise PtxFault(f"{launch.shared_bytes} bytes of shared memory, the device has {limit}")
        if len(launch.parameters) != kernel.parameter_bytes:
            raise PtxFault(f"{len(launch.parameters)} bytes of parameters, the kernel takes {kernel.parameter_bytes}")
        if not all(1 <= size <= most for size, most in zip(launch.grid, (2**31 - 1, 65535, 65535), strict=True)):
            raise PtxFault(f"a grid of {launch.grid}")
        if not 1 <= launch.cluster <= LARGEST_CLUSTER or launch.grid[0] % launch.cluster:
            raise PtxFault(f"a cluster of {launch.cluster} in a grid of {launch.grid}")
        if kernel.target < "sm_90" and (launch.cluster > 1 or launch.dependent):
            raise PtxFault(f"a cluster or a dependent launch of code for {kernel.target}")
        if any(offset % 64 for offset in launch.maps):
            raise PtxFault("a tensor map among the parameters at no multiple of 64")

    def tensor_map(self, address: int) -> TensorMap:
        offset = address - PARAMETER_WINDOW
        if offset not in self.launch.maps:
            raise PtxFault(f"no tensor map at 0x{address:x}")
        return self.launch.maps[offset]

    def early(self) -> bool:
        return self.random.random() < self.likely_early

    def choose(self, fragments: list[Fragment]) -> Fragment:
        if len(fragments) == 1:
            return fragments[0]
        if self.converges_early:
            return min(fragments, key=lambda f: f.pc)
        return self.random.choice(fragments)

    def later(self, arrival: Callable[[], None]) -> None:
        if self.early():
            arrival()
        else:
            self.pending.append(arrival)

    def step(self, warp: Warp, f: Fragment, step: Step, mask: Array) -> bool:
        return STEP[step.instruction.parts[0]](warp, f, step, mask)

    def run(self, clusters: list[tuple[int, int, int]] | None = None) -> None:
        """All clusters, or those whose first CTA is given."""
        self.memory.begin_launch()
        x, y, z = self.launch.grid
        if clusters is None:
            clusters = [(i, j, k) for k in range(z) for j in range(y) for i in range(0, x, self.launch.cluster)]
            self.random.shuffle(clusters)
        for first in clusters:
            self.run_cluster(first)

    def run_cluster(self, first: tuple[int, int, int]) -> None:
        size = self.launch.cluster
        self.cluster_arrived = self.cluster_phase = 0
        self.ctas = [Cta(self, (first[0] + rank, *first[1:]), rank) for rank in range(size)]
        for cta in self.ctas:
            cta.cluster = self.ctas
        warps = [warp for cta in self.ctas for warp in cta.warps]
        while warps:
            moved = False
            self.random.shuffle(warps)
            for warp in warps:
                moved |= self.run_warp(warp, self.random.choice((1, 4, 16, 1000)))
                if self.pending and self.random.random() < 0.05:
                    self.pending.pop(self.random.randrange(len(self.pending)))()
                    moved = True
            warps = [warp for warp in warps if warp.live.any()]
            if not moved and self.pending:
                self.pending.pop(self.random.randrange(len(self.pending)))()
            elif not moved and warps:
                where = {f"CTA {w.cta.index} warp {w.number}: {self.place(w)}" for w in warps}
                raise PtxFault("deadlock: " + "; ".join(sorted(where)[:4]))
        if self.pending:
            raise PtxFault("a cluster ends with copies in flight")
        for cta in self.ctas:
            for warpgroup, values in cta.maxnreg.items():
                if len(values) % 4:
                    raise PtxFault(f"setmaxnreg by some warps of warpgroup {warpgroup}")

    def place(self, warp: Warp) -> str:
        pc = warp.fragments[0].pc if warp.fragments else warp.at
        return str(self.program.kernel.code[min(pc, len(self.program.kernel.code) - 1)])[:90]

    def run_warp(self, warp: Warp, budget: int) -> bool:
        try:
            return warp.run(budget)
        except PtxFault as fault:
            code = self.program.kernel.code
            text = f"{fault}\nCTA {warp.cta.index}, warp {warp.number}, {code[min(warp.at, len(code) - 1)]}"
            raise PtxFault(text) from None
