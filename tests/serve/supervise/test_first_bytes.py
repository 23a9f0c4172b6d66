"""The quantiles of ``/status`` are those of the times themselves."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from vllm_quant_serve.supervise import first_bytes
from vllm_quant_serve.supervise.run_directory import RunDirectory


@pytest.mark.parametrize("count", [1, 2, 19, 20, 100, 1000])
def test_quantiles_are_exact(count: int) -> None:
    times = [random.Random(count).lognormvariate(-3, 2) for _ in range(count)]
    found = first_bytes.quantiles(times)
    assert found is not None
    assert found.pop("answers") == count
    expected = np.quantile(times, list(first_bytes.QUANTILES.values()), method="inverted_cdf")
    assert list(found.values()) == expected.tolist()
    assert first_bytes.quantiles([]) is None, "unknown, not zero"


def test_the_last_times_of_every_server_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = RunDirectory(tmp_path)
    count = first_bytes.KEPT + 10
    for pid in (1, 2):
        monkeypatch.setattr("os.getpid", lambda pid=pid: pid)
        side = first_bytes.FirstBytes(tmp_path)
        for number in range(count):
            side.add(float(number), streamed=True)
        side.add(0.5, streamed=False)
    streamed, whole = first_bytes.read(tmp_path)
    assert sorted(streamed) == sorted([*range(10, count)] * 2)
    assert whole == [0.5, 0.5]
    run_dir.forget_server()
    assert first_bytes.read(tmp_path) == ([], [])
