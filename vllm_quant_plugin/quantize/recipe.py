"""What to do to a model: algorithm, weight schemes, options and calibration. No torch.

A ``Recipe`` is complete and validated: equal recipes on equal inputs give equal files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vllm_quant_plugin.errors import UsageError
from vllm_quant_plugin.option_groups import sort_into
from vllm_quant_plugin.quantize.algorithm import Algorithm, Library, algorithms, get_algorithm
from vllm_quant_plugin.quantize.io.storage import storage_with_kv_scales
from vllm_quant_plugin.quantize.options import Calibration, SchemeOptions, read_request
from vllm_quant_plugin.schemes import Rule, StoredScheme


@dataclass(frozen=True)
class Recipe:
    """How to quantize a model.

    Attributes:
        method: name of the algorithm.
        scheme: what each linear module of the decoder layers becomes, unless a rule says otherwise.
        options: the algorithm's own dataclass.
        backend: ``builtin``, or the library that runs the algorithm.
        calibration: None for a run without data.
        rules: mixed precision: the first that matches a module decides; a scheme of None leaves it in 16 bits.
        kv_cache: whether scales of an FP8 KV cache are measured and stored.
    """

    method: str
    scheme: StoredScheme
    options: Any
    backend: str = "builtin"
    calibration: Calibration | None = None
    rules: tuple[Rule, ...] = ()
    kv_cache: bool = False

    @property
    def algorithm(self) -> Algorithm:
        """The registered algorithm of this name."""
        return get_algorithm(self.method)

    @property
    def library(self) -> Library | None:
        """The library that runs it, None for the built-in engine."""
        return self.algorithm.library(self.backend)

    def scheme_for(self, module: str) -> StoredScheme | None:
        """StoredScheme of a module by its name in the checkpoint, None when it stays in 16 bits."""
        return next((rule.scheme for rule in self.rules if rule.matches(module)), self.scheme)

    def describe(self) -> str:
        """Human-readable summary in one line."""
        what = self.scheme.describe()
        if self.rules:
            bits = sorted({rule.scheme.bits if rule.scheme else 16 for rule in self.rules} | {self.scheme.bits})
            what = f"mixed {'/'.join(map(str, bits))}-bit"
        data = self.calibration
        parts = [
            f"{self.method.upper()} {what} as {self.scheme.storage.label} by {self.backend}",
            self.algorithm.describe(self.options),
            "FP8 KV-cache scales" if self.kv_cache else "",
            f"{data.samples} x {data.seq_len} tokens" if data else "",
        ]
        return ", ".join(filter(None, parts))

    def to_json(self) -> dict[str, Any]:
        """Plain values; ``from_json`` is its inverse."""
        return {
            **asdict(self),
            "scheme": self.scheme.to_json(),
            "rules": [{**asdict(rule), "scheme": rule.scheme and rule.scheme.to_json()} for rule in self.rules],
        }

    @staticmethod
    def from_json(values: dict[str, Any]) -> Recipe:
        """The recipe that ``to_json`` wrote.

        Raises:
            UsageError: its algorithm is not registered here.
        """
        calibration = values["calibration"]
        rules = tuple(
            Rule(rule["pattern"], rule["scheme"] and StoredScheme.from_json(rule["scheme"]), rule["mode"])
            for rule in values["rules"]
        )
        return Recipe(
            **{
                **values,
                "scheme": StoredScheme.from_json(values["scheme"]),
                "options": get_algorithm(values["method"]).options(**values["options"]),
                "calibration": Calibration(**calibration) if calibration else None,
                "rules": rules,
            }
        )


def build_recipe(
    method: str,
    scheme: SchemeOptions | None = None,
    calibration: Calibration | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    backend: str | None = None,
) -> Recipe:
    """A validated recipe from option groups; what is left out gets the algorithm's default.

    Args:
        method: name of a registered algorithm.
        options: of the algorithm, by field name.
        backend: ``builtin``, or a library that runs the algorithm.

    Raises:
        UsageError: unknown names, values out of range, combinations that do not exist.
    """
    scheme, calibration, algorithm = scheme or SchemeOptions(), calibration or Calibration(), get_algorithm(method)
    method = algorithm.name
    made = algorithm.scheme(read_request(scheme, algorithm.presets))
    if scheme.kv_cache:
        made = storage_with_kv_scales(made)
    library = algorithm.library(backend or "builtin")
    reason = library.refusal(made) if library else None
    if library and reason:
        raise UsageError(f"--backend {library.name} {reason}", "use the builtin backend")
    if library and library.own_environment:
        # It writes compressed-tensors, which can also announce KV-cache scales.
        made = storage_with_kv_scales(made)
    resolved = algorithm.resolve(_own_options(algorithm, options or {}), made, library)
    needs_text = algorithm.calibrated(made, resolved) or scheme.kv_cache or bool(library)
    if not needs_text and calibration.source is not None:
        raise UsageError(
            f"{method} uses no calibration data",
            "leave --calibration out, or request --activations static, --smooth or --kv-cache",
        )
    return Recipe(
        method, made, resolved, library.name if library else "builtin", calibration if needs_text else None,
        kv_cache=scheme.kv_cache,
    )  # fmt: skip


def _own_options(algorithm: Algorithm, given: Mapping[str, Any]) -> dict[str, Any]:
    """The given options; refuses those that the algorithm has not."""
    (own,), left = sort_into([algorithm.options], given)
    for name in left:
        takers = [a.name for a in algorithms() if sort_into([a.options], {name: True})[0][0]]
        flag = f"--{name.replace('_', '-')}"
        hint = f"leave it out, or use -m {' or '.join(takers)}" if takers else "see `vllm-quant quantize --help`"
        raise UsageError(f"{algorithm.name} has no {flag}", hint)
    return own


def make_recipe(method: str, *, backend: str | None = None, calibration: str | None = None, **options: Any) -> Recipe:
    """``build_recipe`` with the fields of its groups as keywords.

    Args:
        method: name of a registered algorithm, such as ``awq``, ``gptq``, ``fp8``, ``int8`` or ``rtn``.
        backend: ``builtin``, or a library that runs the algorithm.
        calibration: a text, JSON, JSONL or Parquet file or Hub data set; None for the shipped text.
        options: fields of ``SchemeOptions``, ``Calibration`` and the algorithm's options; None counts as left out.

    Raises:
        UsageError: as ``build_recipe``.
    """
    (scheme, text), own = sort_into([SchemeOptions, Calibration], {**options, "source": calibration})
    return build_recipe(method, SchemeOptions(**scheme), Calibration(**text), own, backend=backend)
