"""How a model is distributed over devices, and vLLM's rules for what does not divide evenly. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_quant_plugin.architecture.arch import VOCAB_PADDING


@dataclass(frozen=True)
class Placement:
    """How a model is cut.

    Attributes:
        tp, pp, dp: tensor, pipeline and data parallel sizes.
        expert_parallel: whole experts are distributed over the ranks.
        layers: layers of each pipeline stage, where the stages differ from vLLM's even split.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    expert_parallel: bool = False
    layers: tuple[int, ...] = ()

    @property
    def devices(self) -> int:
        return self.tp * self.pp * self.dp

    def stages(self, layers: int) -> list[int]:
        """How many of ``layers`` layers each stage holds."""
        return list(self.layers) if self.layers else stage_layers(layers, self.pp)

    @property
    def expert_ranks(self) -> int:
        """Ranks over which whole experts are distributed; 1 without expert parallelism."""
        return self.tp * self.dp if self.expert_parallel else 1


def padded_vocab(vocab: int) -> int:
    return -(-vocab // VOCAB_PADDING) * VOCAB_PADDING


def stage_layers(layers: int, pp: int) -> list[int]:
    """Layers of each pipeline stage, as vLLM's ``get_pp_indices`` distributes them.

    What does not divide goes to the stages before the last, from its end.
    """
    stages = [layers // pp] * pp
    for i in range(2, layers % pp + 2):
        stages[-i] += 1
    return stages
