"""Cells to test with; for the whole session, or Hypothesis would not take them."""

import pytest

from channel import Cell, ChannelConfig


@pytest.fixture(scope="session")
def steady():
    """A configuration whose links are known exactly: 3 dB on 1 MHz, no fading, perfect reports."""
    known = {"fading": "none", "csi_error_db": 0.0, "csi_quantisation_db": 0.0,
             "csi_margin_db": 0.0, "snr_db": 3.0}  # fmt: skip
    return lambda **values: ChannelConfig(**{**known, **values})


@pytest.fixture(scope="session")
def begun():
    """A cell in one of its rounds."""

    def begin(config, num_devices, seed=0, round_index=0):
        cell = Cell(config, num_devices, seed=seed)
        cell.begin_round(round_index)
        return cell

    return begin
