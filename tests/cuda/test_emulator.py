"""The emulator accepts correct kernels and finds planted faults, whatever the order of the warps."""

from __future__ import annotations

import ctypes

import pytest

from tests.cuda import emulated

RIGHT = {
    0: "copies, wait, barriers",
    7: "one instruction for a warp",
    10: "cluster barriers",
    13: "lanes with __syncwarp",
    20: "dependent launch",
    27: "plain loads of what the preceding kernel wrote",
    24: "dependent copy",
    30: "wgmma",
    40: "ring of copies in a cluster",
}
FAULTS = {
    1: "filling|nothing wrote",  # no wait for the copies
    2: "filling|barrier|nothing wrote",  # no barrier after the wait
    3: "another warp may read|between barriers|filling|before a barrier",  # a buffer filled again while it is read
    4: "outside every tensor",
    5: "nothing wrote",
    6: "of 1024 of shared memory",
    8: "different instructions",
    9: "deadlock|threads have ended",
    11: "cluster barrier",
    12: "has ended",
    14: "a lane reads another's write",
    15: "two lanes write",
    16: "two threads store",
    17: "another thread stored",
    26: "read-only path",
    99: "copies in flight",
    21: "before the wait",  # the activations of the preceding kernel
    22: "without waiting",  # half of the threads
    23: "before the wait",  # an output that the preceding kernel may still read
    25: "before the wait",  # an asynchronous copy
    31: "no proxy fence",  # between stores to shared memory and wgmma
    32: "before a barrier|nothing wrote|another's write",  # between the same
    33: "before any wgmma fence",
    34: "registers of A changed",  # before the wait
    35: "accumulators changed",  # before the wait
    36: "before a barrier|no proxy fence|may read it|shared memory changed",  # before the wait
    37: "wgmmas in flight",  # at the end of the thread
    38: "without the 128-byte swizzle",
    39: "no wgmma fence came",  # after the accumulators were released
    41: "filling|nothing wrote|before a barrier",  # no wait for a stage that is full
    42: "filling|may read it|two warps write|more arrivals",  # nor for one that is empty
    43: "deadlock",  # more bytes expected than come
    44: "no fence made visible",  # between the barriers' initialization and copies
    45: "more arrivals|filling|two warps write",  # than the barrier was initialized for
    46: "filling|may read it|before a barrier",  # a stage is released before it is read
    47: "filling|nothing wrote|before a barrier|deadlock",  # the wrong phase is waited for
    48: "multiple of 1024",  # a box in the middle of the swizzle
    49: "has ended",  # a CTA ends while the other still copies into it
    50: "deadlock",  # no arrival at the other CTA
    51: "not initialized|before a barrier",  # barriers of the other CTA are used before they are initialized
}


def run(which: int, seed: int) -> str:
    lib = emulated.library()
    lib.vqp_emulator_toy(which, ctypes.c_uint64(seed))
    return lib.vqp_emulator_fault().decode()


@pytest.mark.parametrize("which", RIGHT, ids=RIGHT.values())
def test_right_kernels_pass(which: int) -> None:
    assert [run(which, seed) for seed in range(6)] == [""] * 6


@pytest.mark.parametrize("which", FAULTS)
def test_planted_faults_are_found(which: int) -> None:
    found = [run(which, seed) for seed in range(6)]
    assert all(found), f"not found with some order of warps: {found}"
    assert all(any(part in text for part in FAULTS[which].split("|")) for text in found), found
