"""The smallest sets of modules that one scheme must cover, because vLLM loads them as one matrix. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vllm_quant_plugin.checkpoint import DTYPE_BYTES
from vllm_quant_plugin.quantize.modules import Linear, siblings
from vllm_quant_plugin.quantize.preflight import packed_bytes
from vllm_quant_plugin.scheme import Scheme

# All experts of a layer are one fused module.
_EXPERTS = re.compile(r"^(.*\.experts)\.\d+\.")


@dataclass(frozen=True)
class Unit:
    """Modules that share a scheme.

    Attributes:
        name: of the first module, or of the layer's experts.
    """

    name: str
    modules: tuple[Linear, ...]

    @property
    def weights(self) -> int:
        return sum(m.in_features * m.out_features for m in self.modules)

    def stored_bytes(self, scheme: Scheme | None) -> int:
        """Bytes of all tensors of the unit's modules in ``scheme``; as they are for None."""
        if scheme is None:
            return sum(m.weight.nbytes for m in self.modules)
        return sum(
            packed_bytes(scheme, m.out_features, m.in_features, int(DTYPE_BYTES[m.weight.dtype])) for m in self.modules
        )


def find_units(modules: Sequence[Linear]) -> list[Unit]:
    """The units of a model in the order of its modules."""
    found: dict[str, list[Linear]] = {}
    for module in modules:
        experts = _EXPERTS.match(module.name)
        found.setdefault(experts[1] if experts else siblings(module.name)[0], []).append(module)
    return [Unit(name, tuple(members)) for name, members in found.items()]
