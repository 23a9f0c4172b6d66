"""The time that remains, with a clock that the test moves."""

from __future__ import annotations

import pytest

from vllm_quant_plugin.progress import Remaining, in_words


class _Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_time_runs_down_between_steps_and_follows_the_pace() -> None:
    clock = _Clock()
    remaining = Remaining(clock)
    assert remaining.seconds() is None
    # A resumed run begins with what is done already, which says nothing about the pace.
    remaining.update(2, 8)
    assert remaining.seconds() is None
    clock.now += 10
    remaining.update(3, 8)
    assert remaining.seconds() == pytest.approx(50)
    clock.now += 4
    assert remaining.seconds() == pytest.approx(46)
    # The machine becomes busy: each layer takes 100 s from now on.
    for done in (4, 5, 6):
        clock.now += 100 if done > 4 else 96
        remaining.update(done, 8)
    assert remaining.seconds() == pytest.approx(200, rel=0.1)
    clock.now += 1000
    assert remaining.seconds() == 0


def test_parts_of_a_step_count() -> None:
    clock = _Clock()
    remaining = Remaining(clock)
    remaining.update(0, 4)
    clock.now += 5
    remaining.update(0.5, 4)
    assert remaining.seconds() == pytest.approx(35)


def test_another_task_starts_again() -> None:
    clock = _Clock()
    remaining = Remaining(clock)
    for done in (0, 1, 2):
        remaining.update(done, 2)
        clock.now += 1
    remaining.update(0, 10)
    assert remaining.seconds() is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min 0 s"), (200, "3 min 20 s"), (1500, "25 min"), (7500, "2 h 5 min")],
)
def test_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
