"""Waits until a time: exact, and in their order."""

import random

import pytest

from channel.timeline import Timeline


def test_a_wait_ends_at_its_time_to_the_bit():
    rng, rounded = random.Random(0), 0
    for _ in range(5000):
        now_s = 10 ** rng.uniform(-6, 6)
        time_s = now_s * (1 + 10 ** rng.uniform(-1, 1))
        timeline = Timeline(now_s)
        timeline.until(time_s)
        assert timeline.peek() == time_s
        timeline.run()
        assert timeline.now == time_s
        rounded += now_s + (time_s - now_s) != time_s
    assert rounded > 50  # what a plain timeout would have missed


def test_waits_are_numbered_and_those_of_one_time_end_in_their_order():
    timeline, ended = Timeline(), []
    for _ in range(3):
        timeline.until(1.0).callbacks.append(lambda event: ended.append(event.value))
    timeline.run()
    assert ended == [1, 2, 3]
    assert timeline.num_waits == 3


def test_a_time_that_is_over_is_named():
    with pytest.raises(ValueError, match="time_s must be >= 2.0, which is now, got 1.0"):
        Timeline(2.0).until(1.0)
