"""Who has the band when: processor sharing, schedulers, broadcast, and their closed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channel import Cell, ChannelConfig


def test_who_starts_later_ends_as_processor_sharing_has_it(begun, steady):
    """Alone for 0.2 s, then two shares: by hand."""
    cell = begun(steady(deadline_s=9.0, round_period_s=9.0), 2)
    rate = cell.true_links().rate_bps[0]
    got = cell.transfer({0: int(rate), 1: int(0.4 * rate)}, start_s={1: 0.2})
    assert got[1].delay_s == pytest.approx(0.8, rel=1e-5)  # 0.4 s of work at half the band
    assert got[0].delay_s == pytest.approx(1.4, rel=1e-5)  # 0.2 + 0.8 + the 0.4 left over


@given(st.lists(st.integers(1, 300_000), min_size=1, max_size=6), st.integers(0, 50))
@settings(max_examples=30)
def test_slots_and_events_agree_where_nothing_changes(begun, sizes, seed):
    """Doppler 0 is a constant channel: the slotted path must find the events' completion times."""
    slotted = ChannelConfig(fading="clarke", doppler_hz=0.0, coherence_s=0.037)
    cell = begun(slotted, len(sizes), seed)
    got = cell.transfer(dict(enumerate(sizes)))
    rates = cell.true_links().rate_bps
    work = np.array(sizes) / rates
    order = np.argsort(work)
    times = np.cumsum((len(sizes) - np.arange(len(sizes))) * np.diff(work[order], prepend=0.0))
    for device, end in zip(order, times, strict=True):
        if end <= 1.0:
            assert got[int(device)].delay_s == pytest.approx(end, rel=1e-9)
        else:
            assert not got[int(device)].is_delivered


@pytest.mark.parametrize("scheduler", ["round-robin", "proportional-fair", "best-first"])
def test_every_scheduler_needs_the_least_makespan_when_nothing_is_wasted(begun, steady, scheduler):
    """At constant efficiency the last end is sum S_i / (B e_i), whatever the order."""
    config = steady(scheduler=scheduler, coherence_s=0.01, deadline_s=9.0, round_period_s=9.0,
                    snr_spread_db=4.0)  # fmt: skip
    cell = begun(config, 5)
    sizes = {d: 100_000 * (d + 1) for d in range(5)}
    makespan = sum(sizes[d] / cell.true_links().rate_bps[d] for d in range(5))
    got = cell.transfer(sizes)
    assert max(d.delay_s for d in got.values()) == pytest.approx(makespan, rel=1e-9)
    assert sum(d.air_s for d in got.values()) == pytest.approx(makespan, rel=1e-9)


@pytest.mark.parametrize(
    ("scheduler", "expected"), [("best-first", 4.6865), ("round-robin", 2.9065)]
)
def test_multiuser_capacity(begun, steady, scheduler, expected):
    """Best of 8 at 10 dB over Rayleigh fading, and in turn; five standard errors over seeds."""
    rates = []
    for seed in range(10):
        config = steady(scheduler=scheduler, fading="clarke", doppler_hz=30.0, snr_db=10.0,
                        coherence_s=0.02, deadline_s=20.0, round_period_s=20.0)  # fmt: skip
        got = begun(config, 8, seed=seed).transfer(dict.fromkeys(range(8), 10**12))
        rates.append(sum(d.sent_bits for d in got.values()) / 20.0 / 1e6)
    assert abs(np.mean(rates) - expected) < 5 * np.std(rates, ddof=1) / np.sqrt(len(rates))


def test_proportional_fair_lies_between_in_rate_and_serves_all(begun, steady):
    sums, least = {}, {}
    for scheduler in ("best-first", "proportional-fair", "round-robin"):
        config = steady(scheduler=scheduler, fading="clarke", doppler_hz=10.0, snr_db=5.0,
                        snr_spread_db=6.0, deadline_s=5.0, round_period_s=5.0)  # fmt: skip
        got = begun(config, 6, seed=2).transfer(dict.fromkeys(range(6), 10**12))
        sent = [d.sent_bits for d in got.values()]
        sums[scheduler], least[scheduler] = sum(sent), min(sent)
    assert sums["best-first"] > sums["proportional-fair"] > sums["round-robin"]
    assert least["proportional-fair"] > least["best-first"]


def test_a_broadcast_goes_at_the_pace_of_the_worst_it_must_reach(begun, steady):
    cell = begun(steady(snr_spread_db=6.0), 6)
    rates = cell.true_links().rate_bps
    got = cell.broadcast(100_000, [0, 2, 5])
    assert set(got) == {0, 2, 5}
    for delivery in got.values():
        assert delivery.delay_s == pytest.approx(100_000 / rates[[0, 2, 5]].min())


def test_processor_sharing_has_its_mean_sojourn(begun, steady):
    """M/M/1 with processor sharing: E[T] = E[x] / (1 - rho), for any size distribution."""
    rng, jobs, rho = np.random.default_rng(0), 6000, 0.5
    sojourn = []
    for seed in range(8):
        config = steady(deadline_s=1e5, round_period_s=1e5, coherence_s=1.0)
        cell = begun(config, jobs, seed)
        rate = cell.true_links().rate_bps[0]
        start = np.cumsum(rng.exponential(1.0 / rho, jobs))
        size = np.maximum(rng.exponential(1.0, jobs) * rate, 1.0).astype(int)
        got = cell.transfer(dict(enumerate(size.tolist())), start_s=dict(enumerate(start)))
        # The first tenth fills the queue from empty.
        sojourn.append(np.mean([got[d].delay_s for d in range(jobs // 10, jobs)]))
    error = np.std(sojourn, ddof=1) / np.sqrt(len(sojourn))
    assert abs(np.mean(sojourn) - 1.0 / (1.0 - rho)) < 5 * error


def test_a_synchronous_round_ends_as_its_distribution_says(steady):
    """Orthogonal bands, Rayleigh blocks: P(T <= t) = exp(-sum_i (2^(S_i / (B t)) - 1) / g)."""
    config = steady(fading="rayleigh", sharing="orthogonal", snr_db=8.0)
    sizes = {0: 200_000, 1: 400_000, 2: 300_000}
    cell, ends = Cell(config, 3, seed=0), []
    for round_index in range(4000):
        cell.begin_round(round_index)
        got = cell.transfer(sizes)
        ends.append(max(d.delay_s if d.is_delivered else np.inf for d in got.values()))
    for t in (0.2, 0.4, 0.9):
        expected = np.exp(-sum((2 ** (s / (1e6 * t)) - 1) / 10**0.8 for s in sizes.values()))
        error = np.sqrt(expected * (1 - expected) / len(ends))
        assert abs(np.mean(np.array(ends) <= t) - expected) < 5 * error
