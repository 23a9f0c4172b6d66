"""One matrix that a layer multiplies by, on its way from the checkpoint to the kernel of one rank.

    checkpoint tensors -> keep, until the last has come
                       -> per part: Format.validate, Format.unpack, this rank's rows and columns
                       -> stack the parts -> hand over

What is loaded is kept whole: safetensors hands out memory-mapped views, so this costs no copy. When the last tensor
has arrived all are converted and released. So never more than one matrix is unpacked at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from vllm_quant_kernels.canonical import CanonicalWeight
from vllm_quant_kernels.unpack_weight import stack_runs
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.formats import get_format
from vllm_quant_plugin.loader import dummy
from vllm_quant_plugin.loader.part import Part, ShardId
from vllm_quant_plugin.loader.shards import ShardPlan
from vllm_quant_plugin.loader.static_range import StaticRange, static_range
from vllm_quant_plugin.schemes import StoredScheme

# Gets the pieces of the matrix along the output, as few as possible, and the range of its static activations.
HandOver = Callable[[list[CanonicalWeight], StaticRange], None]


class MatrixLoader:
    """Keeps the tensors of one matrix and converts them when they are complete.

    Args:
        name: of the module, for messages.
        scheme: of all parts.
        plan: the parts of the matrix, and which rows and columns of them this rank holds.
        hand_over: called once, with what was loaded.

    Attributes:
        specs: the tensors of the whole matrix, by name.

    Raises:
        CheckpointError: the format cannot hold a matrix of this shape.
    """

    def __init__(self, name: str, scheme: StoredScheme, plan: ShardPlan, hand_over: HandOver) -> None:
        self._name, self._scheme, self._plan, self._hand_over = name, scheme, plan, hand_over
        self._format = get_format(scheme)
        self._device = torch.empty(0).device  # vLLM builds a model under its own default device
        self.specs = self._format.tensors(scheme, plan.rows, plan.in_features)
        self._tensors: dict[ShardId, dict[str, torch.Tensor]] = {}
        # Either is all that can come: every part, or the fused matrix.
        self._missing: list[set[tuple[ShardId, str]]] = [
            {(part.shard_id, leaf) for part in plan.parts for leaf in self.specs},
            {(None, leaf) for leaf in self.specs},
        ]
        self._ids = {None, *(part.shard_id for part in plan.parts)}
        self._done = self._closed = False

    def put(self, shard_id: ShardId, leaf: str, tensor: torch.Tensor) -> None:
        """Keep ``tensor``; the last one that is expected completes the matrix. One that comes twice is ignored then.

        Args:
            shard_id: the part, several consecutive parts (a tuple), or None for the whole matrix.

        Raises:
            CheckpointError: the matrix has no such part, or is in use already.
        """
        if self._closed:
            raise CheckpointError(
                f"{self._name}: weights cannot be loaded again into a quantized layer of this plugin",
                "start the server again with the new checkpoint",
            )
        unknown = set(shard_id if isinstance(shard_id, tuple) else [shard_id]) - self._ids
        if unknown:
            raise CheckpointError(
                f"{self._name}.{leaf} was loaded as part {unknown.pop()!r}, which the layer does not have",
                "serve the model with in-tree vLLM",
            )
        if self._done:
            return
        self._tensors.setdefault(shard_id, {})[leaf] = tensor
        for missing in self._missing:
            missing.discard((shard_id, leaf))
        if not all(self._missing):
            self.finish()

    def close(self) -> None:
        """``finish``, after which nothing more may come."""
        self.finish()
        self._closed = True

    def finish(self) -> None:
        """Convert what has come, or random weights where vLLM was asked for them. Does nothing the second time.

        Raises:
            CheckpointError: a tensor is missing, or does not fit the config.
        """
        if self._done:
            return
        self._done = True
        if not self._tensors and dummy.dummy_weights_requested():
            self._tensors = dummy.random_tensors(self._scheme, self._plan)
        pieces: list[CanonicalWeight] = []
        activations: list[tuple[torch.Tensor, torch.Tensor | None] | None] = []
        for shard_id, parts in self._stored_matrices():
            stored = self._tensors.get(shard_id, {})
            tensors = {leaf: tensor.to(self._device) for leaf, tensor in stored.items()}
            pieces += self._cut(self._unpack(shard_id, tensors, sum(part.rows for part in parts)), parts)
            activations.append(self._format.static_activation(tensors))
            del tensors  # on a GPU a copy, which the next part's must not join
        self._hand_over(stack_runs(pieces), static_range(activations))
        self._tensors.clear()

    def _unpack(self, shard_id: ShardId, tensors: dict[str, torch.Tensor], rows: int) -> CanonicalWeight:
        name = self._name if shard_id is None else f"{self._name}[{shard_id}]"
        columns = self._plan.in_features
        self._format.validate(name, tensors, self._scheme, rows, columns)
        return self._format.unpack(tensors, self._scheme, rows, columns)

    def _cut(self, matrix: CanonicalWeight, parts: list[Part]) -> list[CanonicalWeight]:
        """This rank's rows and columns of each of the parts that ``matrix`` holds."""
        pieces, offset = [], 0
        for part in parts:
            piece = matrix.rows(offset + part.start, offset + part.stop)
            pieces.append(piece.columns(self._plan.column_start, self._plan.column_stop).pad_rows(part.pad_to))
            offset += part.rows
        return pieces

    def _stored_matrices(self) -> list[tuple[ShardId, list[Part]]]:
        """What came from the checkpoint, in the order of the plan: (shard id, the parts it holds)."""
        if None in self._tensors:
            if len(self._tensors) > 1:
                raise CheckpointError(f"{self._name} is in the checkpoint both whole and in parts", "keep one of them")
            return [(None, list(self._plan.parts))]
        by_id = {part.shard_id: part for part in self._plan.parts}
        found: list[tuple[ShardId, list[Part]]] = []
        covered: set[ShardId] = set()
        for key in self._tensors:
            if isinstance(key, tuple):
                found.append((key, [by_id[i] for i in key]))
                covered.update(key)
        found += [(part.shard_id, [part]) for part in self._plan.parts if part.shard_id not in covered]
        order = {part.shard_id: i for i, part in enumerate(self._plan.parts)}
        return sorted(found, key=lambda entry: order[entry[1][0].shard_id])
