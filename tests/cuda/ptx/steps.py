"""Instructions that involve other threads or the order of events. A step returns whether it is done; one that is not
is tried again, and remembers in the fragment's token that it has arrived."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tests.cuda.ptx.arrays import Array
from tests.cuda.ptx.copies import issue_bulk
from tests.cuda.ptx.faults import PtxFault
from tests.cuda.ptx.mbarriers import Mbarrier
from tests.cuda.ptx.shared import BASE

if TYPE_CHECKING:
    from tests.cuda.ptx.translate import Step
    from tests.cuda.ptx.warp import Fragment, Warp


def values(warp: Warp, step: Step) -> list[Array]:
    return step.values(warp.registers, warp.specials, warp.constants)


def whole(warp: Warp, f: Fragment, step: Step) -> None:
    warp.need_all(f.mask, step.instruction.opcode)


def released(warp: Warp, f: Fragment) -> bool:
    """Threads that waited at the same place leave it together."""
    together = [g for g in warp.fragments if g is not f and g.pc == f.pc and g.token is not None]
    if together:
        warp.merge([f, *together])
    f.token = None
    return True


def bar(warp: Warp, f: Fragment, step: Step, mask: Array) -> bool:
    if step.instruction.opcode == "bar.warp.sync":
        if step.instruction.operands != ("-1",):
            raise PtxFault(f"not modelled: {step.instruction}")
        return warp.meet(f)
    if step.instruction.opcode != "bar.sync" or step.instruction.operands != ("0",):
        raise PtxFault(f"not modelled: {step.instruction}")
    cta = warp.cta
    if f.token is None:
        f.token = cta.phase
        cta.arrived += int(mask.sum())
        if cta.arrived == cta.machine.launch.threads:
            cta.phase += 1
            cta.arrived = 0
            cta.barrier_passed()
    return f.token != cta.phase and released(warp, f)


def barrier(warp: Warp, f: Fragment, step: Step, mask: Array) -> bool:
    machine, opcode = warp.machine, step.instruction.opcode
    if opcode.startswith("barrier.cluster.arrive"):
        if opcode != "barrier.cluster.arrive.release":
            raise PtxFault(f"not modelled: {opcode}")
        if (warp.cluster_tokens[mask] == machine.cluster_phase).any():
            raise PtxFault("a thread arrives twice at a phase of the cluster barrier")
        warp.cluster_tokens[mask] = machine.cluster_phase
        machine.cluster_arrived += int(mask.sum())
        if machine.cluster_arrived == sum(cta.live for cta in machine.ctas):
            machine.cluster_arrived = 0
            machine.cluster_phase += 1
            for cta in machine.ctas:
                cta.barrier_passed()
                cta.shared.cluster_epoch = cta.shared.epoch
        return True
    if opcode != "barrier.cluster.wait.acquire":
        raise PtxFault(f"not modelled: {opcode}")
    if (warp.cluster_tokens[mask] < 0).any():
        raise PtxFault("a thread waits at the cluster barrier before it arrives")
    f.token = 0
    return bool((warp.cluster_tokens[mask] < machine.cluster_phase).all()) and released(warp, f)


def mbarrier(warp: Warp, f: Fragment, step: Step, mask: Array) -> bool:
    opcode, operands = step.instruction.opcode, values(warp, step)
    name = opcode.split(".")[1]
    if name == "try_wait":
        return try_wait(warp, step, mask, operands[-2], operands[-1])
    for lane in np.nonzero(mask)[0]:
        address = int(operands[0][lane])
        if name == "init":
            initialize(warp, address, int(operands[1][lane]))
            continue
        cta, local = warp.cta.cluster_address(address)
        if "shared::cta" in opcode and cta is not warp.cta:
            raise PtxFault("a shared::cta address is of another CTA")
        bar = cta.mbarrier(local, warp)
        if opcode == "mbarrier.arrive.expect_tx.shared::cta.b64":
            bar.expect(int(operands[1][lane]))
        elif opcode != "mbarrier.arrive.release.cluster.shared::cluster.b64":
            raise PtxFault(f"not modelled: {opcode}")
        bar.remote |= cta is not warp.cta
        warp.cta.shared.releases[warp.number] += 1
        if bar.arrive():
            cta.phase_ended(bar)
    return True


def initialize(warp: Warp, address: int, count: int) -> None:
    shared = warp.cta.shared
    (offset,) = shared.offsets(np.array([address], np.uint32), 8, "an mbarrier of")
    if int(offset) in warp.cta.mbarriers:
        raise PtxFault(f"the mbarrier at offset {offset} is initialized twice")
    warp.cta.mbarriers[int(offset)] = Mbarrier(count, warp.number, shared.epoch)


def try_wait(warp: Warp, step: Step, mask: Array, addresses: Array, parities: Array) -> bool:
    """False, and so tried again, until the phase has ended: the loop around it only turns more often."""
    done = np.zeros(32, bool)
    for lane in np.nonzero(mask)[0]:
        if parities[lane] > 1:
            raise PtxFault(f"a parity of {parities[lane]}")
        bar = warp.cta.mbarrier(int(addresses[lane]), warp)
        if bar.remote and "cluster" not in step.instruction.parts:
            raise PtxFault(
                "a wait of the CTA's scope for arrivals from other CTAs: nothing orders their accesses before"
            )
        done[lane] = bar.completed(int(parities[lane]))
    if not done[mask].all():
        return False
    (slot,) = step.results
    warp.registers[slot] = np.where(mask, done, warp.registers[slot])
    return True


def cp(warp: Warp, f: Fragment, step: Step, mask: Array) -> bool:
    opcode, parts = step.instruction.opcode, step.instruction.parts
    operands = values(warp, step)
    if opcode == "cp.async.commit_group":
        warp.copies.commit(mask)
    elif opcode == "cp.async.wait_group":
        warp.copies.wait(int(step.instruction.operands[0], 0), mask)
    elif parts[2] == "bulk":
        bulk(warp, step, mask, operands)
    else:
        size = int(step.instruction.operands[2])
        sizes = operands[2] if len(operands) > 2 else np.full(32, size, np.uint32)
        warp.copies.issue(opcode, size, mask, operands[0], operands[1], sizes)
    return True


PLAIN = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
TENSOR = "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"


def bulk(warp: Warp, step: Step, mask: Array, operands: list[Array]) -> None:
    opcode, cluster = step.instruction.opcode, warp.cta.cluster
    if opcode not in (PLAIN, TENSOR, TENSOR + ".multicast::cluster"):
        raise PtxFault(f"not modelled: {opcode}")
    for lane in np.nonzero(mask)[0]:
        to, *rest = (int(operand[lane]) for operand in operands)
        source, rest = (rest[:3], rest[3:]) if "tensor" in opcode else (rest[:2], rest[2:])
        targets = [warp.cta]
        if "multicast" in opcode:
            ranks = [rank for rank in range(16) if rest[1] >> rank & 1]
            if not ranks or ranks[-1] >= len(cluster):
                raise PtxFault(f"a multicast to CTAs {ranks} of a cluster of {len(cluster)}")
            targets = [cluster[rank] for rank in ranks]
        issue_bulk(warp, opcode, int(lane), to, rest[0], targets, *source)


def fence(warp: Warp, f: Fragment, step: Step, mask: Array) -> bool:
    opcode = step.instruction.opcode
    if opcode == "fence.mbarrier_init.release.cluster":
        for bar in warp.cta.mbarriers.values():
            bar.fenced |= bar.warp == warp.number
    elif opcode == "fence.proxy.async.shared::cta":
        for words in warp.unfenced:
            warp.cta.shared.generic[words] = False
        warp.unfenced = []
    else:
        raise PtxFault(f"not modelled: {opcode}")
    return True


def griddepcontrol(warp: Warp, f: Fragment, step: Step, mask: Array) -> bool:
    if step.instruction.opcode == "griddepcontrol.wait":
        warp.waited = warp.waited | mask
    return True


def setmaxnreg(warp: Warp, f: Fragment, step: Step, mask: Array) -> bool:
    whole(warp, f, step)
    wanted, parts, cta = int(step.instruction.operands[0]), step.instruction.parts, warp.cta
    if parts[2:] != ["sync", "aligned", "u32"] or wanted % 8 or not 24 <= wanted <= 256:
        raise PtxFault(f"no such register count: {step.instruction}")
    more = wanted - warp.registers_per_thread
    if (more > 0) != (parts[1] == "inc") and more:
        raise PtxFault(f"{step.instruction.opcode} from {warp.registers_per_thread} to {wanted} registers")
    if 32 * more > cta.pool:
        return False
    cta.pool -= 32 * more
    warp.registers_per_thread = wanted
    cta.maxnreg.setdefault(warp.number // 4, []).append(step.instruction.opcode)
    return True


def shfl(warp: Warp, f: Fragment, step: Step, mask: Array) -> bool:
    if step.instruction.opcode != "shfl.sync.bfly.b32":
        raise PtxFault(f"not modelled: {step.instruction}")
    if not warp.live.all():
        raise PtxFault("a shuffle of all lanes, some of which have ended")
    if not warp.meet(f):
        return False
    source, by, clamp, members = values(warp, step)[-4:]
    if (clamp != 31).any() or (members != np.uint32(0xFFFFFFFF)).any():
        raise PtxFault("a shuffle among some of the lanes: not modelled")
    warp.registers[step.results[0]] = source[np.arange(32) ^ by]
    if len(step.results) > 1:
        warp.registers[step.results[1]] = np.ones(32, bool)
    return True


def wgmma(warp: Warp, f: Fragment, step: Step, mask: Array) -> bool:
    whole(warp, f, step)
    i = step.instruction
    if i.opcode == "wgmma.fence.sync.aligned":
        warp.products.fence()
    elif i.opcode == "wgmma.commit_group.sync.aligned":
        warp.products.commit()
    elif i.opcode == "wgmma.wait_group.sync.aligned":
        warp.products.wait(int(i.operands[0]))
    else:
        warp.products.issue(step, values(warp, step))
    return True


def prefetch(warp: Warp, f: Fragment, step: Step, mask: Array) -> bool:
    if step.instruction.opcode != "prefetch.tensormap":
        raise PtxFault(f"not modelled: {step.instruction}")
    for address in values(warp, step)[0][mask]:
        warp.machine.tensor_map(int(address))
    return True


STEP: dict[str, Callable[[Warp, Fragment, Step, Array], bool]] = {
    "bar": bar, "barrier": barrier, "mbarrier": mbarrier, "cp": cp, "fence": fence, "griddepcontrol": griddepcontrol,
    "setmaxnreg": setmaxnreg, "wgmma": wgmma, "shfl": shfl, "prefetch": prefetch,
}  # fmt: skip
assert BASE % 1024 == 0
