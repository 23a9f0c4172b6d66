"""What a cell's logits must be, and how near: tolerances derived, or measured where rounding makes steps.

float32, weight-only. Plugin and reference compute the same function and differ in the order of
summation only. A dot product of K terms carries a rounding error of about eps * sqrt(K) of its
size (a random walk of K roundings). DEPTH products follow each other, RMSNorm between them keeps
relative errors relative, and independent errors add as sqrt(DEPTH):

    |logit - logit'| <= 4 * sqrt(DEPTH) * eps * sqrt(K_max) * max|logit|

4 = two sides, each within two standard deviations. About 1e-4 here, while one zero point that
is off by one in one group moves some logit by more (tests/methods/test_oracle.py).

W8A8. Activations are rounded to 255 steps. The oracle is ``ReferenceModel`` with that rounding in
front of every quantized product. An input that differs by float32 noise, at most
eps * sqrt(K_max) = 3e-6 of its size, may round to the next step: of the 3000 inputs of a
position, each up to 127 steps long, 127 * 3e-6 * 3000 = 1 flips at the very worst and a tenth of
that where inputs are normally distributed and noise is, too. A flip spoils its position and, through
attention, later ones of its sequence. So of the positions of seven prompts three quarters must be
clean, that is within the weight-only bound, and no other may differ by more than flips do: that
is measured by running the reference with inputs moved by 10 * eps * sqrt(K_max), ten times
the noise and so ten times the flips. Activations that were left alone, or rounded by another rule,
leave no position clean (also there). Keys and values in an FP8 cache are rounded, too, and judged
in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from tests.support.engines import PROMPTS, Answer
from tests.support.quantized_checkpoints import Written
from tests.support.reference_model import ReferenceModel
from tests.support.tiny_models import INTERMEDIATE, LAYERS, TinyModel
from vllm_quant_kernels.scheme import ActivationScheme

EPS = torch.finfo(torch.float32).eps
DEPTH = 4 * LAYERS + 1
_ROW_PARALLEL = ("o_proj", "down_proj", "w2")
_INPUT_OF = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj", "w3": "w1"}


def float32_tolerance(scale: float) -> float:
    """Largest difference of two logits of magnitude up to ``scale``, see above."""
    return 4 * math.sqrt(DEPTH) * EPS * math.sqrt(INTERMEDIATE) * scale


def input_ranges(model: TinyModel, *, apart: bool = True) -> dict[str, tuple[float, float]]:
    """(low, high) of every module's input over ``PROMPTS``.

    Args:
        apart: narrower for k and up than for q and gate. Fused parts with different ranges show
            whether a loader joins them; quantizers, which observe one input, write equal ones.
    """
    found: dict[str, tuple[float, float]] = {}

    def observe(name: str, x: torch.Tensor) -> torch.Tensor:
        low, high = found.get(name, (0.0, 0.0))
        found[name] = (min(low, float(x.min())), max(high, float(x.max())))
        return x

    reference = ReferenceModel(model.config, model.tensors, on_input=observe)
    for prompt in PROMPTS:
        reference.logits(prompt)
    narrow = {"k_proj": 0.75, "up_proj": 0.9} if apart else {}
    return {name: (low * narrow.get(name.rpartition(".")[2], 1.0), high) for name, (low, high) in found.items()}


def _round_int8(
    x: torch.Tensor, activation: ActivationScheme, static: list[Mapping[str, torch.Tensor]]
) -> torch.Tensor:
    """x rounded to int8 steps and back, in float32 as the checkpoint's scheme says.

    vLLM's conventions (csrc/quantization: scaled_int8_quant): symmetric scale = amax / 127;
    asymmetric scale = (max - min) / 255, zero = round(-128 - min / scale). Fused parts with
    different static parameters share the widest range.
    """
    x = x.float()
    if activation.dynamic:
        if activation.symmetric:
            scale, zero = x.abs().amax(-1, keepdim=True) / 127, torch.zeros(1)
        else:
            low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
            scale = (high - low) / 255
            zero = torch.round(-128 - low / scale)
    elif activation.symmetric:
        scale, zero = torch.stack([s["input_scale"] for s in static]).amax(), torch.zeros(1)
    else:
        scales = torch.stack([s["input_scale"] for s in static])
        zeros = torch.stack([s["input_zero_point"].float() for s in static])
        low, high = (scales * (-128 - zeros)).amin(), (scales * (127 - zeros)).amax()
        scale = (high - low) / 255
        zero = torch.round(-128 - low / scale)
    return ((torch.round(x / scale) + zero).clamp(-128, 127) - zero) * scale


def _round_fp8(x: torch.Tensor) -> torch.Tensor:
    """x rounded to float8_e4m3fn with one scale per token, and back."""
    scale = x.abs().amax(-1, keepdim=True).float() / 448
    return (x.float() / scale).to(torch.float8_e4m3fn).float() * scale


class Oracle:
    """float64 logits of ``written``'s model, with activations and cache rounded where its config says so.

    Args:
        fp8: round the inputs of FP8 weights per token, as tensor cores need; the plugin on a CPU
            leaves them alone.
        ranks: tensor-parallel ranks; each rounds its part of a row-parallel module's input.
    """

    def __init__(self, model: TinyModel, written: Written, *, fp8: bool = False, ranks: int = 1) -> None:
        self.model, self.written, self.fp8, self.ranks = model, written, fp8, ranks
        active = [s.is_int for s in written.schemes.values() if s.activation is not None]
        self.rounds = any(active) or (fp8 and bool(active)) or written.kv_scales is not None

    def _hook(self, name: str, x: torch.Tensor) -> torch.Tensor:
        scheme = self.written.schemes.get(name)
        if scheme is None or scheme.activation is None:
            return x
        if not scheme.is_int:
            return _round_fp8(x) if self.fp8 else x
        stem, _, leaf = name.rpartition(".")
        key = _INPUT_OF.get(leaf, leaf)
        fused = [self.written.static.get(f"{stem}.{p}", {}) for p in (key, *_INPUT_OF) if _INPUT_OF.get(p, p) == key]
        parts = x.chunk(self.ranks if leaf in _ROW_PARALLEL else 1, dim=-1)
        return torch.cat([_round_int8(part, scheme.activation, [s for s in fused if s]) for part in parts], dim=-1)

    def answer(self, tokens: list[list[int]], moved: float = 0.0, seed: int = 0) -> Answer:
        """Logits after each token of ``PROMPTS`` continued by ``tokens``.

        Args:
            moved: relative noise on the input of every rounded product.
        """
        generator = torch.Generator().manual_seed(seed)

        def hook(name: str, x: torch.Tensor) -> torch.Tensor:
            noise = torch.rand(x.shape, generator=generator, dtype=torch.float64) * 2 - 1
            return self._hook(name, x * (1 + moved * noise) if moved else x)

        reference = ReferenceModel(
            self.model.config,
            self.written.dense,
            on_input=hook if self.rounds else None,
            kv_scales=self.written.kv_scales,
        )
        sequences = [[*prompt, *more[:-1]] for prompt, more in zip(PROMPTS, tokens, strict=True)]
        logits = [reference.logits(sequence).float() for sequence in sequences]
        return Answer(tokens, logits)

    def flip_bound(self, expected: Answer) -> float:
        """The largest change of a logit of ``expected`` when ten times too many activations round the other way."""
        moved = 10 * EPS * math.sqrt(INTERMEDIATE)
        runs = [self.answer(expected.tokens, moved, seed) for seed in range(3)]
        return 2 * max(float(differences(run, expected).max()) for run in runs)


def differences(a: Answer, b: Answer) -> torch.Tensor:
    """float32 (positions,): the largest difference of two logits at each position of all prompts."""
    return torch.cat([(x - y).abs().amax(dim=-1) for x, y in zip(a.logits, b.logits, strict=True)])


@dataclass(frozen=True)
class Verdict:
    """How an answer compares to the oracle's.

    Attributes:
        clean: share of positions within the float32 bound.
        worst: largest difference of two logits.
        same_choice: whether the most likely token agrees at every clean position.
    """

    clean: float
    worst: float
    same_choice: bool


def judge(got: Answer, expected: Answer) -> Verdict:
    """Compare two answers about the same sequences."""
    assert got.sequences() == expected.sequences()
    difference = differences(got, expected)
    clean = difference <= float32_tolerance(expected.scale())
    same = torch.cat(got.choices()) == torch.cat(expected.choices())
    return Verdict(float(clean.float().mean()), float(difference.max()), bool(same[clean].all()))
