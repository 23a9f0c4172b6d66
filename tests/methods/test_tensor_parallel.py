"""Two ranks, real worker processes: the same greedy tokens and logits as the float64 reference."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.engines import Answer
from tests.support.matrix import CELLS, Cell
from tests.support.oracle import Oracle, input_ranges, judge
from tests.support.quantized_checkpoints import Written, write_checkpoint
from tests.support.tiny_models import tiny_model
from vllm_quant_kernels.scheme import E4M3, PER_CHANNEL, Int
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.formats.compressed_tensors import INT_QUANTIZED
from vllm_quant_plugin.formats.gptq import GPTQ_V2
from vllm_quant_plugin.loader.shards import check_columns
from vllm_quant_plugin.schemes import Storage, StoredScheme

ROOT = Path(__file__).resolve().parents[2]
TWO_RANKS = [cell for cell in CELLS if cell.tp == 2]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Written]:
    """Every two-rank cell's checkpoint, answered: FOLDER/answer.pt.

    One process starts the engines in turn, each with a worker process per rank.
    """
    folder = tmp_path_factory.mktemp("ranks")
    made = {}
    for cell in TWO_RANKS:
        model = tiny_model(cell.architecture)
        made[cell.name] = write_checkpoint(folder / cell.name, model, cell.recipe, input_ranges=input_ranges(model))
    words = [word for c in TWO_RANKS for word in (json.dumps(c.engine_options()), str(made[c.name].folder))]
    environment = {
        **os.environ,
        "VLLM_CPU_OMP_THREADS_BIND": "0|1" if (os.cpu_count() or 1) > 1 else "0|0",
        "OMP_NUM_THREADS": "1",
        # As in ask_engine: workers would compile the function that ranks log-probabilities.
        "TORCHDYNAMO_DISABLE": "1",
    }
    command = [sys.executable, "-m", "tests.support.ask_two_ranks", *words]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    return made


@pytest.mark.engine
@pytest.mark.parametrize("cell", TWO_RANKS, ids=lambda cell: cell.name)
def test_two_ranks(cell: Cell, written: dict[str, Written]) -> None:
    """Within the tolerances of tests/support/oracle.py: two ranks add two partial sums, no more.

    A rank rounds the activations that it has, as in-tree does: where the inputs are split, each
    half of a token has a scale of its own.
    """
    stored = torch.load(written[cell.name].folder / "answer.pt", weights_only=True)
    got = Answer(stored["tokens"], stored["logits"])
    oracle = Oracle(tiny_model(cell.architecture), written[cell.name], ranks=2)
    expected = oracle.answer(got.tokens)
    verdict = judge(got, expected)
    if oracle.rounds:
        assert verdict.clean >= 0.75
        assert verdict.worst <= oracle.flip_bound(expected)
    else:
        assert verdict.clean == 1
    assert verdict.same_choice


@pytest.mark.parametrize(
    ("scheme", "in_features", "tp", "works"),
    [
        (StoredScheme(Int(4), 128, storage=Storage("awq")), 384, 2, r"tensor_parallel_size 1, 3 work"),
        (
            StoredScheme(Int(4), 64, storage=GPTQ_V2),
            320,
            2,
            r"tensor_parallel_size 1, 5 work",
        ),
        (
            StoredScheme(E4M3, 128, block=(128, 128), storage=Storage("fp8")),
            512,
            8,
            r"tensor_parallel_size 1, 2, 4 work",
        ),
        (StoredScheme(Int(4), 256, storage=Storage("awq")), 256, 2, r"tensor_parallel_size 1 works"),
    ],
)
def test_split_that_cuts_a_group(scheme: StoredScheme, in_features: int, tp: int, works: str) -> None:
    with pytest.raises(CheckpointError, match=rf"in_features {in_features} / tensor_parallel_size {tp}.*{works}"):
        check_columns("model.layers.0.mlp.down_proj", scheme, in_features, tp)


@pytest.mark.parametrize(
    ("scheme", "in_features", "tp"),
    [
        (StoredScheme(Int(4), 128, storage=Storage("awq")), 512, 4),
        (StoredScheme(Int(4), 128, act_order=True, storage=GPTQ_V2), 320, 2),
        (StoredScheme(Int(8), PER_CHANNEL, storage=INT_QUANTIZED), 100, 4),
    ],
)
def test_splits_that_work(scheme: StoredScheme, in_features: int, tp: int) -> None:
    check_columns("module", scheme, in_features, tp)
