"""Any configuration that is accepted gives sane physics."""

from typing import get_args

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from channel import Cell, ChannelConfig, LinkConfig, PathConfig
from channel.config import Adaptation, Fading, Scheduler, Sharing
from channel.pathloss import SCENARIOS

links = st.builds(
    LinkConfig,
    adaptation=st.sampled_from(get_args(Adaptation)),
    snr_gap_db=st.floats(0, 6),
    block_symbols=st.integers(50, 5000),
    target_error=st.floats(1e-5, 0.49),
    max_tries=st.integers(1, 6),
    combining=st.sampled_from(["none", "chase"]),
    is_reliable=st.booleans(),
    burst_start=st.sampled_from([0.0, 0.2]),
)
paths = st.builds(
    PathConfig,
    scenario=st.sampled_from(["none", *SCENARIOS]),
    carrier_hz=st.floats(0.7e9, 30e9),
    mobility=st.sampled_from(["static", "waypoint"]),
    min_distance_m=st.floats(0, 20),
    cell_radius_m=st.floats(50, 2000),
    speed_min_mps=st.floats(0.1, 1.0),
    speed_max_mps=st.floats(1.0, 40.0),
)


def config_of(path, snr_db, **values):
    """A number, or a geometry in its place."""
    return ChannelConfig(path=path, snr_db=None if path.scenario != "none" else snr_db, **values)


configs = st.builds(
    config_of,
    sharing=st.sampled_from(get_args(Sharing)),
    scheduler=st.sampled_from(get_args(Scheduler)),
    bandwidth_hz=st.floats(1e3, 1e8),
    snr_db=st.none() | st.floats(-60, 60),
    snr_spread_db=st.floats(0, 20),
    fading=st.sampled_from(get_args(Fading)),
    doppler_hz=st.none() | st.floats(0, 300),
    coherence_s=st.floats(0.01, 2.0),
    deadline_s=st.floats(0.01, 1.0),
    csi_error_db=st.floats(0, 10),
    csi_quantisation_db=st.just(0.0) | st.floats(1e-3, 3),
    csi_margin_db=st.floats(-3, 10),
    csi_delay_s=st.floats(0, 3),
    residual_error_rate=st.floats(0, 1),
    away_per_s=st.sampled_from([0.0, 1.0]),
    path=paths,
    link=links,
)


@settings(max_examples=120, deadline=None)
@given(
    config=configs,
    sizes=st.lists(st.integers(0, 10**7), min_size=1, max_size=5),
    late=st.lists(st.floats(0, 1.5), min_size=5, max_size=5),
    seed=st.integers(0, 99),
    direction=st.sampled_from(["down", "up"]),
)
def test_bits_and_energy_are_conserved_and_nothing_is_nan(config, sizes, late, seed, direction):
    cell = Cell(config, len(sizes), seed=seed)
    for round_index in range(2):
        cell.begin_round(round_index)
        for links_now in (cell.true_links(direction), cell.reported_links(direction)):
            assert not np.isnan(links_now.snr_db).any()
            assert np.isfinite(links_now.rate_bps).all()
            assert (links_now.rate_bps >= 0).all()
        assert (cell.planned_rate_bps(cell.reported_links()) >= 0).all()
        start_s = dict(enumerate(late[: len(sizes)]))
        got = cell.transfer(dict(enumerate(sizes)), direction=direction, start_s=start_s)
        for device, delivery in got.items():
            assert 0 <= delivery.sent_bits <= sizes[device]
            assert delivery.delivered_bits in (0, sizes[device])
            assert 0 <= delivery.delay_s <= config.deadline_s * (1 + 1e-9)
            assert 0 <= delivery.air_s <= delivery.delay_s * (1 + 1e-6) + 1e-9
            assert np.isfinite(delivery.energy_j)
            assert delivery.energy_j >= 0
            if delivery.is_delivered:
                assert delivery.sent_bits == sizes[device]
        if config.sharing == "shared":
            # One band: the devices' times on the air add up to the deadline at most.
            assert sum(d.air_s for d in got.values()) <= config.deadline_s * (1 + 1e-6)
        assert cell.now_s <= round_index * config.round_period_s + config.deadline_s * (1 + 1e-9)
