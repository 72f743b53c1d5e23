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
    ("values", "message"),
    [
        ({"bandwidth_hz": 0.0}, "channel.bandwidth_hz must be > 0, got 0.0"),
        ({"bandwidth_hz": -1.0}, "channel.bandwidth_hz must be > 0, got -1.0"),
        ({"bandwidth_hz": math.inf}, "channel.bandwidth_hz must be > 0, got inf"),
        ({"deadline_s": math.nan}, "channel.deadline_s must be > 0, got nan"),
        ({"deadline_s": 2.0}, "deadline_s 2.0 must not exceed channel.round_period_s 1.0"),
        ({"snr_db": math.nan}, "channel.snr_db must be between -300 and 300, got nan"),
        ({"snr_db": None, "snr_choices_db": ()}, "snr_choices_db must not be empty"),
        ({"fading": "nakagami"}, "channel.fading must be one of .*'nakagami'"),
        ({"sharing": "tdma"}, "channel.sharing must be one of shared, orthogonal, got 'tdma'"),
        ({"csi_error_db": -1.0}, "channel.csi_error_db must be >= 0, got -1.0"),
        ({"residual_error_rate": 1.5}, r"residual_error_rate must be in \[0, 1\], got 1.5"),
        ({"preset": "papper"}, "'papper' is not known; did you mean 'paper'"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        ChannelConfig(**values)


def test_the_default_is_its_preset():
    assert ChannelConfig() == ChannelConfig.from_preset("iot-shared-1mhz")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PathConfig(scenario="mars"), "channel.path.scenario must be one of none, umi"),
        (lambda: PathConfig(cell_radius_m=5.0), "path.cell_radius_m must be above .* 10.0, got 5"),
        (lambda: PathConfig(mobility="trajectory"), "need each other"),
        (lambda: PathConfig(terminal_height_m=20.0), r"must be in \(1, 13\], got 20.0"),
        (lambda: LinkConfig(adaptation="turbo"), "channel.link.adaptation must be one of shannon"),
        (lambda: LinkConfig(max_tries=0), "channel.link.max_tries must be >= 1, got 0"),
        (lambda: LinkConfig(target_error=0.5), r"target_error must be in \(0, 0.5\), got 0.5"),
        (lambda: ChannelConfig(scheduler="lottery"), "channel.scheduler must be one of equal"),
        (lambda: ChannelConfig(coherence_s=1e-9), "more than a million slots"),
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
def test_bad_sections_are_named(make, message):
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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"snr_db": [1, 2]}, "snr_db must be one number, got .1, 2.; a list belongs into channel."),
        ({"snr_db": np.array([1.0, 2.0])}, "must be one number, got .1.0, 2.0.; a list belongs"),
        ({"snr_db": "5"}, "snr_db must be a number between -300 and 300, got '5'"),
        ({"bandwidth_hz": "1e6"}, "bandwidth_hz must be a number > 0, got '1e6'"),
        ({"link": {"max_tries": "2"}}, "link.max_tries must be a number >= 1, got '2'"),
        ({"energy": {"idle_power_w": "2"}}, "energy.idle_power_w must be a number >= 0"),
    ],
)
def test_what_is_no_number_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        ChannelConfig.from_preset("paper", **values)


def test_numpy_numbers_and_lists_are_taken():
    config = ChannelConfig.from_preset("paper", snr_choices_db=np.arange(3), deadline_s=np.int64(1))
    assert config.snr_choices_db == (0, 1, 2)
    assert ChannelConfig(snr_db=None, snr_choices_db=np.arange(3)).snr_choices_db[2] == 2


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'wide-band'"):
        preset_values("wideband")
