"""How GPUs are named on the command line."""

import pytest

from vllm_quant_plugin.errors import UsageError
from vllm_quant_serve.plan.devices.gpus import GPUS, MAX_DEVICES, parse_gpu


@pytest.mark.parametrize(
    ("spec", "key", "count"),
    [
        ("h100", "h100", 1), ("h100:2", "h100", 2), ("h100x2", "h100", 2), ("H100 x 2", "h100", 2),
        ("2xh100", "h100", 2),
        ("h100*4", "h100", 4), ("mi300x", "mi300x", 1), ("mi300x8", "mi300x", 8), ("mi300x:8", "mi300x", 8),
        ("mi300xx8", "mi300x", 8), ("rtx4090x2", "rtx4090", 2), ("4 x RTX 4090", "rtx4090", 4),
        ("4090x2", "rtx4090", 2),
        ("NVIDIA H100", "h100", 1), ("a100-40x4", "a100-40", 4), ("h100-sxm", "h100", 1),
    ],
)  # fmt: skip
def test_a_name_and_a_count(spec, key, count):
    assert parse_gpu(spec) == (GPUS[key], count)


@pytest.mark.parametrize(
    ("spec", "says"),
    [("h10", "did you mean h100"), ("mi300", "did you mean mi300x"), ("h1000x2", "did you mean h100"),
     ("h100:", "not a number of GPUs"), ("h100:0", "not a number of GPUs"), ("h100x0", "not a number of GPUs"),
     (f"h100:{MAX_DEVICES + 1}", "not a number of GPUs"), ("h100:" + "9" * 5000, "not a number of GPUs"),
     ("abacus", "known are"), ("x" * 10**6, "not in the table"), ("", "not in the table")],
)  # fmt: skip
def test_what_is_wrong_and_what_to_do(spec, says):
    with pytest.raises(UsageError) as caught:
        parse_gpu(spec)
    assert says in f"{caught.value.message} {caught.value.hint}"
    assert len(str(caught.value)) < 600
