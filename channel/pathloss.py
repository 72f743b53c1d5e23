"""Large-scale loss of 3GPP TR 38.901 (section 7.4): urban micro, urban macro, indoor hotspot.

Distances in metres, carrier in GHz inside the formulas as in table 7.4.1-1; every function takes
and gives arrays. UMa is the form for terminals of at most 13 m.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

SPEED_OF_LIGHT_MPS = 299_792_458.0
_ENVIRONMENT_HEIGHT_M = 1.0  # h_E of UMi, and of UMa for terminals below 13 m


@dataclass(frozen=True, slots=True)
class Scenario:
    """What distinguishes the scenarios; (LOS, NLOS) pairs from tables 7.4.1-1 and 7.5-6."""

    base_height_m: float
    shadowing_db: tuple[float, float]
    correlation_m: tuple[float, float]
    """distance over which shadowing falls to 1/e"""
    rician_k_db: tuple[float, float]
    """mean and standard deviation of K with line of sight"""


SCENARIOS = {
    "umi": Scenario(10.0, (4.0, 7.82), (10.0, 13.0), (9.0, 5.0)),
    "uma": Scenario(25.0, (4.0, 6.0), (37.0, 50.0), (9.0, 3.5)),
    "inh": Scenario(3.0, (3.0, 8.03), (10.0, 6.0), (7.0, 4.0)),
}


def breakpoint_m(scenario: str, carrier_hz: float, terminal_height_m: float) -> float:
    """d_BP = 4 (h_BS - h_E)(h_UT - h_E) f_c / c, beyond which the ground reflection takes over."""
    base = SCENARIOS[scenario].base_height_m - _ENVIRONMENT_HEIGHT_M
    terminal = terminal_height_m - _ENVIRONMENT_HEIGHT_M
    return 4.0 * base * terminal * carrier_hz / SPEED_OF_LIGHT_MPS


def path_loss_db(
    scenario: str,
    distance_m: ArrayLike,
    carrier_hz: float,
    *,
    is_los: ArrayLike,
    terminal_height_m: float = 1.5,
) -> Array:
    """Median path loss at a ground distance; ``is_los`` broadcasts against the distance.

    TR 38.901 table 7.4.1-1. The NLOS loss is never below the LOS loss at the same place.
    """
    ground = np.maximum(np.asarray(distance_m, dtype=float), 1e-3)
    height = SCENARIOS[scenario].base_height_m
    direct = np.hypot(ground, height - terminal_height_m)  # d_3D
    f_ghz = carrier_hz / 1e9
    log_d, log_f = np.log10(direct), np.log10(f_ghz)
    if scenario == "inh":
        los = 32.4 + 17.3 * log_d + 20.0 * log_f
        nlos = 17.3 + 38.3 * log_d + 24.9 * log_f
    else:
        edge_m = breakpoint_m(scenario, carrier_hz, terminal_height_m)
        corner = np.log10(edge_m**2 + (height - terminal_height_m) ** 2)
        if scenario == "umi":
            near = 32.4 + 21.0 * log_d + 20.0 * log_f
            far = 32.4 + 40.0 * log_d + 20.0 * log_f - 9.5 * corner
            nlos = 22.4 + 35.3 * log_d + 21.3 * log_f - 0.3 * (terminal_height_m - 1.5)
        else:
            near = 28.0 + 22.0 * log_d + 20.0 * log_f
            far = 28.0 + 40.0 * log_d + 20.0 * log_f - 9.0 * corner
            nlos = 13.54 + 39.08 * log_d + 20.0 * log_f - 0.6 * (terminal_height_m - 1.5)
        los = np.where(ground <= edge_m, near, far)
    return np.where(np.asarray(is_los), los, np.maximum(los, nlos))


def los_probability(scenario: str, distance_m: ArrayLike) -> Array:
    """Probability of line of sight at a ground distance (TR 38.901 table 7.4.2-1)."""
    d = np.maximum(np.asarray(distance_m, dtype=float), 1e-3)
    if scenario == "inh":
        return np.where(
            d <= 1.2,
            1.0,
            np.where(d < 6.5, np.exp(-(d - 1.2) / 4.7), 0.32 * np.exp(-(d - 6.5) / 32.6)),
        )
    decay_m = 36.0 if scenario == "umi" else 63.0
    far = 18.0 / d + np.exp(-d / decay_m) * (1.0 - 18.0 / d)
    return np.where(d <= 18.0, 1.0, far)


def shadowing_step(
    previous_db: ArrayLike,
    moved_m: ArrayLike,
    *,
    sigma_db: ArrayLike,
    correlation_m: ArrayLike,
    normal: ArrayLike,
) -> Array:
    """Shadowing after a move: AR(1) with rho = exp(-moved / correlation distance).

    (Gudmundson 1991; TR 38.901 section 7.4.4.) ``normal`` is a standard normal draw; the variance
    stays sigma^2 whatever the steps.
    """
    rho = np.exp(-np.asarray(moved_m) / np.asarray(correlation_m))
    fresh = np.asarray(sigma_db) * np.asarray(normal)
    return rho * np.asarray(previous_db) + np.sqrt(1.0 - rho**2) * fresh
