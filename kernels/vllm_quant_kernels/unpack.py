"""Codes in 32-bit words, as checkpoint formats lay them out, read without unpacking what is not wanted.

padded   32 // bits fields a word, unused high bits zero (2, 4 and 8 bits leave none)

    bit 0                              bit 31
    | f0 | f1 | f2 | ...         | pad |

dense    one bit stream, least significant bit first; 32 fields fill exactly ``bits`` words

    | f0 | f1 | ... | f10 lo || f10 hi | f11 | ...          (bits = 3)

int32 is what safetensors and vLLM carry; its sign bit is data here, so every shift is followed by a mask.
``unpack_padded`` and ``unpack_dense`` are the reference; a :class:`WordCodes` reads with the native
library where there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from vllm_quant_kernels.cpu import library, native
from vllm_quant_kernels.shared_library import raise_error
from vllm_quant_kernels.sizes import round_up

# n         words (K, N * bits / 32)        padded, along N, in the order of ``field_order`` (AWQ)
# k         words (ceil(K * bits / 32), N)  dense down each column (GPTQ)
# k_rows    words (N, ceil(K * bits / 32))  dense along each row (compressed-tensors from 0.18 on)
# k_padded  words (N, words(K))             padded along each row (compressed-tensors up to 0.17)
WordLayout = Literal["n", "k", "k_rows", "k_padded"]
_LAYOUT_CODES = {"n": 0, "k": 1, "k_rows": 2, "k_padded": 3}


def field_order(bits: int) -> list[int]:
    """Layout ``n``: logical position of each field of a word, low bits first: the even ones, then the odd ones."""
    per_word = 32 // bits
    return [*range(0, per_word, 2), *range(1, per_word, 2)]


def unpack_padded(words: torch.Tensor, bits: int, count: int, order: Sequence[int] | None = None) -> torch.Tensor:
    """Fields of padded words.

    Args:
        words: int32 (..., W).
        count: fields to keep; the rest is padding.
        order: ``order[i]`` is the logical position of field ``i`` within its word; None is 0, 1, 2, ...

    Returns:
        uint8 (..., count).
    """
    per_word = 32 // bits
    out = torch.empty(*words.shape, per_word, dtype=torch.uint8, device=words.device)
    mask = (1 << bits) - 1
    for field in range(per_word):
        out[..., field if order is None else order[field]] = (words >> (bits * field)) & mask
    return out.flatten(-2)[..., :count]


def unpack_dense(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Fields of a dense stream: int32 (..., ceil(count * bits / 32)) to uint8 (..., count)."""
    short = -words.shape[-1] % bits
    if short:
        words = torch.nn.functional.pad(words, (0, short))
    blocks = words.unflatten(-1, (-1, bits))
    out = torch.empty(*blocks.shape[:-1], 32, dtype=torch.uint8, device=words.device)
    mask = (1 << bits) - 1
    for field in range(32):
        word, shift = divmod(field * bits, 32)
        value = (blocks[..., word] >> shift) & mask
        left = 32 - shift
        if left < bits:
            value = (value & ((1 << left) - 1)) | ((blocks[..., word + 1] << left) & mask)
        out[..., field] = value
    return out.flatten(-2)[..., :count]


@dataclass(frozen=True)
class WordCodes:
    """The codes [row, row + n) x [column, column + k) of a matrix (N, K) that is stored in words.

    Attributes:
        words: int32, 2-D, as ``layout`` says.
        layout: where the codes lie.
        bits: 2 to 8; layout ``n`` has 2, 4 and 8.
        n, k: output and input features that are wanted.
        row, column: the first of each.
    """

    words: torch.Tensor
    layout: WordLayout
    bits: int
    n: int
    k: int
    row: int = 0
    column: int = 0

    def __post_init__(self) -> None:
        rows, columns = self.stored_shape()
        if self.words.dtype != torch.int32:
            raise ValueError(f"words must be int32, got {self.words.dtype}")
        inside = 0 <= self.row <= self.row + self.n <= rows and 0 <= self.column <= self.column + self.k <= columns
        if not inside or min(self.n, self.k) < 0:
            raise ValueError(
                f"codes [{self.row}, {self.row + self.n}) x [{self.column}, {self.column + self.k}) are not in "
                f"{self.bits}-bit words {tuple(self.words.shape)} of layout {self.layout}, which hold {rows}, {columns}"
            )

    def stored_shape(self) -> tuple[int, int]:
        """(N, K) of all codes that the words have room for. Raises ValueError for another layout, bits or shape."""
        if self.layout not in _LAYOUT_CODES:
            raise ValueError(f"unknown layout {self.layout!r}")
        if not 2 <= self.bits <= 8 or (self.layout == "n" and 32 % self.bits):
            raise ValueError(f"no layout {self.layout} of {self.bits} bits")
        if self.words.ndim != 2:
            raise ValueError(f"words must be 2-D, got {tuple(self.words.shape)}")
        rows, columns = self.words.shape
        if self.layout == "n":
            return columns * (32 // self.bits), rows
        if self.layout == "k":
            return columns, rows * 32 // self.bits
        return rows, columns * 32 // self.bits if self.layout == "k_rows" else columns * (32 // self.bits)

    def rows(self, start: int, stop: int) -> WordCodes:
        """Output features [start, stop) of these."""
        return replace(self, row=self.row + start, n=stop - start)

    def columns(self, start: int, stop: int) -> WordCodes:
        """Input features [start, stop) of these."""
        return replace(self, column=self.column + start, k=stop - start)

    @property
    def native(self) -> bool:
        """Whether the native library reads these codes."""
        whole_words = self.layout != "n" or (self.row % 16 == 0 and self.n * self.bits % 32 == 0)
        return whole_words and self.n * self.k > 0 and self.words.device.type == "cpu" and library.available()

    def tensor(self) -> torch.Tensor:
        """uint8 (n, k), contiguous."""
        if not self.native:
            return self.reference()
        out = torch.empty(self.n, self.k, dtype=torch.uint8)
        self._call(library.load().vqp_unpack_words, out.data_ptr())
        return out

    def reference(self) -> torch.Tensor:
        """What ``tensor`` gives, in PyTorch, on any device."""
        rows, columns = self.stored_shape()
        if self.layout == "n":
            codes = unpack_padded(self.words, self.bits, rows, field_order(self.bits)).t()
        elif self.layout == "k":
            codes = unpack_dense(self.words.t().contiguous(), self.bits, columns)
        elif self.layout == "k_rows":
            codes = unpack_dense(self.words, self.bits, columns)
        else:
            codes = unpack_padded(self.words, self.bits, columns)
        return codes[self.row : self.row + self.n, self.column : self.column + self.k].contiguous()

    def pack_into(self, out: torch.Tensor, order: torch.Tensor | None, columns: int) -> None:
        """Write the planes of :mod:`vllm_quant_kernels.cpu.layout`; only where ``native``.

        Args:
            out: uint8, contiguous, n rounded up to 16 times ``columns`` * bits / 8 bytes.
            order: None, or int32 (columns,): the source column of each packed one, -1 = padding.
        """
        size = round_up(self.n, 16) * columns * self.bits // 8
        if out.dtype != torch.uint8 or not out.is_contiguous() or out.numel() != size:
            raise ValueError(f"out must be uint8 ({size},), got {out.dtype} {tuple(out.shape)}")
        if order is not None and (order.dtype != torch.int32 or order.numel() != columns):
            raise ValueError(f"order must be int32 ({columns},), got {order.dtype} {tuple(order.shape)}")
        pointer = None if order is None else order.data_ptr()
        self._call(library.load().vqp_pack_words, pointer, columns, out.data_ptr())

    def _call(self, function, *rest) -> None:  # type: ignore[no-untyped-def]
        words = self.words.contiguous()
        code = function(
            words.data_ptr(), *words.shape, _LAYOUT_CODES[self.layout], self.bits, self.row, self.n, self.column,
            self.k, *rest, torch.get_num_threads(),
        )  # fmt: skip
        if code:
            raise_error(code, native.ERRORS)
