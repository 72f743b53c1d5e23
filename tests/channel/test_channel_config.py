"""Presets, and what is said about values that make no sense."""

import math
from dataclasses import replace

import numpy as np
import pytest

from channel import ChannelConfig, LinkConfig, PathConfig, preset_names, preset_values


def test_the_papers_channel():
    config = ChannelConfig.from_preset("paper")
    assert (config.bandwidth_hz, config.deadline_s, config.fading) == (100e6, 1.0, "none")
    assert config.snr_db is None
    assert config.snr_choices_db == (-5, 0, 5, 10, 15)
    assert (config.csi_error_db, config.csi_quantisation_db, config.csi_margin_db) == (0, 0, 0)


def test_every_preset_makes_a_config():
    assert {"paper", "iot-shared-1mhz", "umi-5g", "uma-vehicular", "indoor"} <= set(preset_names())
    for name in preset_names():
        assert ChannelConfig.from_preset(name).preset == name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ChannelConfig(bandwidth_hz=0.0), r"bandwidth_hz\n.*greater than 0 .*=0.0"),
        (lambda: ChannelConfig(bandwidth_hz=math.inf), r"bandwidth_hz\n.*finite number .*=inf"),
        (lambda: ChannelConfig(deadline_s=math.nan), r"deadline_s\n.*finite number .*=nan"),
        (lambda: ChannelConfig(bandwidth_hz="1e6"), r"bandwidth_hz\n.*valid number .*='1e6'"),
        (lambda: ChannelConfig(bandwidth_hz=True), r"bandwidth_hz\n.*valid number .*=True"),
        (lambda: ChannelConfig(snr_db=[1, 2]), r"snr_db\n.*valid number .*=\(1, 2\)"),
        (lambda: ChannelConfig(snr_db=400), r"snr_db\n.*less than or equal to 300 .*=400"),
        (lambda: ChannelConfig(fading="nakagami"), r"fading\n.*'none', 'rayleigh', .*='nakagami'"),
        (lambda: ChannelConfig(bandwith_hz=1.0), r"bandwith_hz\n.*[Uu]nexpected keyword"),
        (lambda: PathConfig(terminal_height_m=20.0), r"terminal_height_m\n.*equal to 13 .*=20.0"),
        (lambda: LinkConfig(max_tries=0), r"max_tries\n.*greater than or equal to 1 .*=0"),
        (lambda: LinkConfig(target_error=0.5), r"target_error\n.*less than 0.5 .*=0.5"),
        (
            lambda: ChannelConfig.from_preset("paper", link={"max_tries": "2"}),
            r"LinkConfig\nmax_tries\n.*valid integer .*='2'",
        ),
    ],
)
def test_a_bad_value_is_named_with_its_bound(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_default_is_its_preset():
    assert ChannelConfig() == ChannelConfig.from_preset("iot-shared-1mhz")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PathConfig(cell_radius_m=5.0), "path.cell_radius_m must be above .* 10.0, got 5"),
        (lambda: PathConfig(mobility="trajectory"), "need each other"),
        (lambda: ChannelConfig(coherence_s=1e-9), "more than a million slots"),
        (lambda: ChannelConfig(deadline_s=2.0), "2.0 must not exceed channel.round_period_s 1.0"),
        (lambda: ChannelConfig(snr_db=None, snr_choices_db=()), "choices_db must not be empty"),
        (lambda: ChannelConfig(preset="papper"), "'papper' is not known; did you mean 'paper'"),
        (
            lambda: ChannelConfig(trace="x.csv", path=PathConfig(scenario="umi")),
            "exclude each other",
        ),
        (
            lambda: ChannelConfig(path=PathConfig(scenario="umi")),
            "channel.snr_db 5 and channel.path.scenario 'umi' both say .*snr_db = \"none\" to go",
        ),
        (
            lambda: ChannelConfig(trace="x.csv"),
            "channel.snr_db 5 and channel.trace 'x.csv' both say .* channel.trace = \"\" to go by",
        ),
    ],
)
def test_values_that_do_not_go_together_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_mapping_replaces_what_it_names_of_a_presets_section():
    preset = ChannelConfig.from_preset("umi-5g")
    wider = ChannelConfig.from_preset("umi-5g", path={"cell_radius_m": 500.0})
    assert wider == replace(preset, path=replace(preset.path, cell_radius_m=500.0))
    assert (wider.path.scenario, wider.path.mobility, wider.snr_db) == ("umi", "waypoint", None)
    own = PathConfig(scenario="uma")
    assert ChannelConfig.from_preset("umi-5g", path=own).path == own
    link = ChannelConfig.from_preset("umi-5g", link={"max_tries": 2}).link
    assert link == replace(preset.link, max_tries=2)
    energy = ChannelConfig.from_preset("umi-5g", energy={"idle_power_w": 0.5}).energy
    assert energy == replace(preset.energy, idle_power_w=0.5)


def test_numpy_numbers_and_lists_are_taken():
    config = ChannelConfig.from_preset("paper", snr_choices_db=np.arange(3), deadline_s=np.int64(1))
    assert config.snr_choices_db == (0, 1, 2)
    assert ChannelConfig(snr_db=None, snr_choices_db=np.arange(3)).snr_choices_db[2] == 2


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'wide-band'"):
        preset_values("wideband")
