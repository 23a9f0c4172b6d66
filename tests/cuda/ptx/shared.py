"""The shared memory of a CTA, with what is known of every 4-byte word: whether anything wrote it, which copies still
fill it, which wgmmas still read it, who accessed it since the last barrier, through which proxy it was written."""

from __future__ import annotations

import numpy as np

from tests.cuda.ptx.arrays import Array
from tests.cuda.ptx.faults import PtxFault

BASE = 0x400  # the system's part of shared memory comes first
WINDOW = 24  # shared::cluster addresses are (rank + 1) << WINDOW plus the address in that CTA
TYPES = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
NOBODY, SEVERAL = -1, -2


class SharedMemory:
    """``size`` bytes at ``BASE``. ``epoch`` counts the barriers of the CTA."""

    def __init__(self, size: int) -> None:
        self.size = size
        words = -(-size // 16) * 4 + 4
        self.bytes = np.zeros(words * 4, np.uint8)
        self.views = {width: self.bytes.view(kind) for width, kind in TYPES.items()}
        self.written = np.zeros(words * 4, bool)
        self.filling = np.zeros(words, np.int16)
        self.reading = np.zeros(words, np.int16)
        self.generic = np.zeros(words, bool)  # written by the generic proxy, not yet fenced for the asynchronous one
        self.writer = np.full(words, NOBODY, np.int16)
        self.write_epoch = np.full(words, -1, np.int32)
        self.reader = np.full(words, NOBODY, np.int16)
        self.read_epoch = np.full(words, -1, np.int32)
        self.read_release = np.full(words, -1, np.int32)
        self.releases = np.zeros(64, np.int32)  # by warp: how often it has arrived at an mbarrier or a barrier
        self.epoch = 0
        self.cluster_epoch = 0  # the epoch that the last barrier of the cluster began
        self.ended = False

    def offsets(self, addresses: Array, width: int, doing: str) -> Array:
        """Bounds and alignment of shared::cta addresses."""
        offsets = addresses.astype(np.int64) - BASE
        low, high = int(offsets.min()), int(offsets.max())
        if low < 0 or high + width > self.size:
            raise PtxFault(f"outside of the {self.size} bytes of shared memory: {doing} {width} bytes at offset "
                           f"{low if low < 0 else high}")  # fmt: skip
        if (offsets & (width - 1)).any():
            raise PtxFault(f"misaligned: {doing} {width} bytes of shared memory at offset "
                           f"{int(offsets[(offsets & (width - 1)) != 0][0])}")  # fmt: skip
        return offsets

    def words(self, offsets: Array, width: int) -> Array:
        first = offsets >> 2
        if width <= 4:
            return first
        return (first[:, None] + np.arange(width // 4)).ravel()

    def check_read(self, words: Array, offsets: Array, width: int, warp: int) -> None:
        if self.filling[words].any():
            raise PtxFault("shared memory is read that a copy is still filling")
        if not (self.written[offsets].all() and self.written[offsets + width - 1].all()):
            raise PtxFault("shared memory is read that nothing wrote")
        raced = (self.write_epoch[words] == self.epoch) & (self.writer[words] != warp)
        if raced.any():
            raise PtxFault("shared memory is read that another warp wrote, with no barrier between")

    def note_read(self, words: Array, warp: int) -> None:
        again = (self.read_epoch[words] == self.epoch) & (self.reader[words] != warp)
        self.reader[words] = np.where(again, SEVERAL, warp)
        self.read_epoch[words] = self.epoch
        self.read_release[words] = self.releases[warp] if warp >= 0 else -1

    def check_write(self, words: Array, warp: int) -> None:
        if self.filling[words].any():
            raise PtxFault("shared memory is written that a copy is still filling")
        if self.reading[words].any():
            raise PtxFault("shared memory is written that a wgmma may still read")
        if ((self.read_epoch[words] == self.epoch) & (self.reader[words] != warp)).any():
            raise PtxFault("shared memory is written that another warp may still read: no barrier between")
        if ((self.write_epoch[words] == self.epoch) & (self.writer[words] != warp)).any():
            raise PtxFault("shared memory is written that another warp wrote, with no barrier between")

    def note_write(self, words: Array, warp: int) -> None:
        self.writer[words] = warp
        self.write_epoch[words] = self.epoch

    def load(self, addresses: Array, width: int, count: int, warp: int) -> list[Array]:
        """``count`` elements of ``width`` bytes per lane."""
        size = width * count
        offsets = self.offsets(addresses, size, "a load of")
        words = self.words(offsets, size)
        self.check_read(words, offsets, size, warp)
        self.note_read(words, warp)
        view = self.views[width]
        return [view[offsets // width + i] for i in range(count)]

    def store(self, addresses: Array, width: int, values: list[Array], warp: int) -> Array:
        """Returns the words, which are to be fenced before the asynchronous proxy reads them."""
        size = width * len(values)
        offsets = self.offsets(addresses, size, "a store of")
        if len(offsets) > 1 and len(np.unique(offsets)) != len(offsets):
            raise PtxFault("two lanes write the same shared memory")
        words = self.words(offsets, size)
        self.check_write(words, warp)
        self.note_write(words, warp)
        view = self.views[width]
        for i, value in enumerate(values):
            view[offsets // width + i] = value
        for i in range(size):
            self.written[offsets + i] = True
        self.generic[words] = True
        return words

    def remote_load(self, addresses: Array, width: int) -> Array:
        """From another CTA of the cluster: only what was written before the last barrier of the cluster."""
        if self.ended:
            raise PtxFault("shared memory is read of a CTA that has ended")
        offsets = self.offsets(addresses, width, "a load of")
        words = self.words(offsets, width)
        if not self.written[offsets].all() or self.filling[words].any():
            raise PtxFault("shared memory of another CTA is read that nothing wrote")
        if (self.write_epoch[words] >= self.cluster_epoch).any():
            raise PtxFault(
                "shared memory of another CTA is read that was written after the last barrier of the cluster"
            )
        self.note_read(words, SEVERAL)
        return self.views[width][offsets // width]

    # Copies: from issue to completion the words belong to the copy.

    def begin_fill(self, words: Array, warp: int) -> None:
        """A cp.async of warp ``warp`` is issued."""
        self.check_write(words, warp)
        self.filling[words] += 1

    def begin_bulk_fill(self, words: Array) -> None:
        """A copy is issued that mbarriers order: each warp that has read the words has arrived at one since."""
        if self.ended:
            raise PtxFault("a copy writes to the shared memory of a CTA that has ended")
        if self.filling[words].any():
            raise PtxFault("a copy writes shared memory that another copy is still filling")
        if self.reading[words].any():
            raise PtxFault("a copy writes shared memory that a wgmma may still read")
        read = self.reader[words]
        if ((read >= 0) & (self.read_release[words] == self.releases[np.maximum(read, 0)])).any():
            raise PtxFault("a copy writes shared memory that a warp may still read: it has not arrived anywhere since")
        self.filling[words] += 1

    def end_fill(self, words: Array, warp: int = NOBODY) -> None:
        """Complete: visible to ``warp`` (cp.async), or to all (an mbarrier's phase has ended)."""
        self.filling[words] -= 1
        self.reader[words] = NOBODY
        if warp == NOBODY:
            self.writer[words], self.write_epoch[words], self.generic[words] = NOBODY, -1, False
        else:
            self.note_write(words, warp)
            self.generic[words] = True

    def land(self, offset: int, data: Array) -> None:
        """Bytes of a copy arrive."""
        self.bytes[offset : offset + len(data)] = data
        self.written[offset : offset + len(data)] = True

    def matrix_words(self, offsets: Array) -> Array:
        """The words of pieces of 16 bytes that a wgmma reads."""
        if int(offsets.min()) < 0 or int(offsets.max()) + 16 > self.size:
            raise PtxFault(f"outside of the {self.size} bytes of shared memory: a wgmma at offset {int(offsets.max())}")
        words = self.words(offsets.ravel(), 16)
        if self.filling[words].any():
            raise PtxFault("a wgmma reads shared memory that a copy is still filling")
        if not self.written[words * 4].all():
            raise PtxFault("a wgmma reads shared memory that nothing wrote")
        if self.generic[words].any():
            raise PtxFault("a wgmma reads shared memory written by the generic proxy: no proxy fence since")
        if (self.write_epoch[words] == self.epoch).any():
            raise PtxFault("a wgmma reads shared memory that warps wrote, with no barrier between")
        return words
