"""Each formula by hand."""

import pytest

from channel.energy import (
    EnergyConfig,
    idle_energy_j,
    receive_energy_j,
    transmit_energy_j,
)

CONFIG = EnergyConfig(
    receive_power_w=0.6, idle_power_w=0.02, transmit_power_w=0.2, amplifier_efficiency=0.4,
    circuit_power_w=0.1,
)  # fmt: skip


def test_each_formula():
    assert receive_energy_j(CONFIG, 2.0) == pytest.approx(1.2)
    assert idle_energy_j(CONFIG, 3.0) == pytest.approx(0.06)
    assert transmit_energy_j(CONFIG, 2.0, 0.2) == pytest.approx((0.2 / 0.4 + 0.1) * 2.0)
