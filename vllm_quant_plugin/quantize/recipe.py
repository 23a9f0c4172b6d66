"""What to do to a model: method, bits, group size and calibration. No torch.

A ``Recipe`` is complete and validated: equal recipes on equal inputs give equal files.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from vllm_quant_plugin.scheme import ActivationScheme, Rule, Scheme

Method = Literal["awq", "gptq", "fp8", "int8", "rtn"]
Backend = Literal["builtin", "gptqmodel", "autoawq", "llmcompressor"]
Smooth = float | Literal["search"]
METHODS: tuple[Method, ...] = ("awq", "gptq", "fp8", "int8", "rtn")
DATA_FREE = ("fp8", "int8", "rtn")
BITS: dict[Method, tuple[int, ...]] = {
    "awq": (2, 3, 4, 8), "gptq": (2, 3, 4, 8), "fp8": (8,), "int8": (8,), "rtn": (2, 3, 4, 5, 6, 7, 8),
}  # fmt: skip
BACKENDS: dict[Method, tuple[Backend, ...]] = {
    "awq": ("builtin", "autoawq", "gptqmodel"), "gptq": ("builtin", "gptqmodel"),
    "fp8": ("builtin", "llmcompressor"), "int8": ("builtin", "llmcompressor"), "rtn": ("builtin",),
}  # fmt: skip


@dataclass(frozen=True)
class Calibration:
    """Which text, and how much of it.

    Attributes:
        source: a file or a hub data set, or None for the text that ships with the package.
        samples: number of windows.
        seq_len: tokens in a window.
        seed: of the choice of windows.
        packing: documents laid end to end and cut; else the beginning of each document that fills a window.
    """

    source: str | None = None
    samples: int = 128
    seq_len: int = 512
    seed: int = 0
    packing: bool = True


@dataclass(frozen=True)
class Recipe:
    """How to quantize a model.

    Attributes:
        method: the algorithm.
        scheme: what each linear module of the decoder layers becomes, unless a rule says otherwise.
        backend: who runs the algorithm.
        calibration: None for methods that need no data.
        damp: GPTQ: share of the mean diagonal added to the Hessian.
        mse: GPTQ: exponent of the scale search's error, 0 for no search.
        static_groups: GPTQ: fix all groups' scales before the first column is rounded.
        rules: mixed precision: the first that matches a module decides; a scheme of None leaves it in 16 bits.
        smooth: INT8 with 8-bit activations: strength of SmoothQuant, "search" for the best per input, None for none.
        kv_cache: whether scales of an FP8 KV cache are measured and stored.
    """

    method: Method
    scheme: Scheme
    backend: Backend = "builtin"
    calibration: Calibration | None = None
    damp: float = 0.05
    mse: float = 2.4
    static_groups: bool = False
    rules: tuple[Rule, ...] = ()
    smooth: Smooth | None = None
    kv_cache: bool = False

    def scheme_for(self, module: str) -> Scheme | None:
        """Scheme of a module by its name in the checkpoint, None when it stays in 16 bits."""
        return next((rule.scheme for rule in self.rules if rule.matches(module)), self.scheme)

    def describe(self) -> str:
        """One line for people."""
        data = f", {self.calibration.samples} x {self.calibration.seq_len} tokens" if self.calibration else ""
        what = self.scheme.describe()
        if self.rules:
            bits = sorted({rule.scheme.bits if rule.scheme else 16 for rule in self.rules} | {self.scheme.bits})
            what = f"mixed {'/'.join(map(str, bits))}-bit"
        smooth = f", SmoothQuant {self.smooth}" if self.smooth is not None else ""
        cache = ", FP8 KV-cache scales" if self.kv_cache else ""
        return f"{self.method.upper()} {what} as {self.scheme.storage} by {self.backend}{smooth}{cache}{data}"

    def to_json(self) -> dict[str, Any]:
        """Plain values; ``from_json`` is its inverse."""
        return asdict(self)

    @staticmethod
    def from_json(fields: dict[str, Any]) -> Recipe:
        """The recipe that ``to_json`` wrote."""
        calibration = fields["calibration"]
        rules = tuple(
            Rule(rule["pattern"], _read_scheme(rule["scheme"]) if rule["scheme"] else None, rule["mode"])
            for rule in fields.get("rules", ())
        )
        return Recipe(
            **{
                **fields,
                "scheme": _read_scheme(fields["scheme"]),
                "calibration": Calibration(**calibration) if calibration else None,
                "rules": rules,
            }
        )


def _read_scheme(fields: dict[str, Any]) -> Scheme:
    activation, block = fields["activation"], fields["block"]
    return Scheme(
        **{
            **fields,
            "block": tuple(block) if block else None,
            "activation": ActivationScheme(**activation) if activation else None,
        }
    )
