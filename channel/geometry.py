"""Where devices are and what that makes of their links: path loss, sight, shadowing, movement."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from channel.config import PathConfig
from channel.mobility import Mobility, RandomWaypoint, Static, Trajectory
from channel.pathloss import SCENARIOS, los_probability, path_loss_db, shadowing_step
from channel.streams import rng_for
from channel.units import noise_power_dbm

Array = NDArray[np.float64]
Times = Array | float
_SIGHT_STREAM, _SHADOW_STREAM = 24, 25


def periods(time_s: Times, period_s: float) -> NDArray[np.int64]:
    """How many periods have passed, however many rounds that was."""
    # A hair is added, or a period's own start would fall into the one before.
    return np.maximum(np.floor(np.asarray(time_s) / period_s + 1e-9), 0).astype(np.int64)


class LargeScale:
    """Path loss, sight and shadowing of moving devices."""

    def __init__(
        self, config: PathConfig, period_s: float, movers: Sequence[Mobility], *, seed: int
    ) -> None:
        """Shadowing moves on every ``period_s``."""
        self.config, self.seed, self.num_devices = config, seed, len(movers)
        self._period_s, self._movers = period_s, movers
        self._scenario = SCENARIOS[config.scenario]
        start = self.positions_m(0.0)
        # Sight is drawn once: who walks round a corner keeps it in this model.
        draw = rng_for(seed, _SIGHT_STREAM).uniform(size=len(movers))
        self.is_los = draw < los_probability(config.scenario, np.hypot(*start.T))
        self._sigma_db = np.where(self.is_los, *self._scenario.shadowing_db)
        self._correlation_m = np.where(self.is_los, *self._scenario.correlation_m)
        mean, spread = self._scenario.rician_k_db
        normal = rng_for(seed, _SIGHT_STREAM, 1).standard_normal(len(movers))
        # Without sight there is no direct path to speak of: K of -40 dB is Rayleigh.
        self.rician_k_db = np.where(self.is_los, mean + spread * normal, -40.0)
        self._place = start  # in the newest period of these
        self._shadows_db = [self._sigma_db * self._normal(0)]

    def positions_m(self, time_s: Times) -> Array:
        times_s = np.broadcast_to(np.asarray(time_s, dtype=float), self.num_devices).tolist()
        each = zip(self._movers, times_s, strict=True)
        return np.array([mover.position_m(at_s) for mover, at_s in each])

    def snr_db(self, time_s: Times, bandwidth_hz: float, direction: str) -> Array:
        """[devices] power budget: transmit power + gains - loss - shadowing - noise."""
        config = self.config
        place = self.positions_m(time_s)
        now = np.broadcast_to(periods(time_s, self._period_s), self.num_devices)
        self._shadow_db(int(now.max()))
        shadow_db = np.array([self._shadows_db[p][d] for d, p in enumerate(now.tolist())])
        # Ways may lead past the base station: no nearer than where the formulas hold.
        distance_m = np.maximum(np.hypot(*place.T), config.min_distance_m)
        loss_db = path_loss_db(
            config.scenario, distance_m, config.carrier_hz,
            is_los=self.is_los, terminal_height_m=config.terminal_height_m,
        )  # fmt: skip
        is_up = direction == "up"
        power_dbm = config.device_power_dbm if is_up else config.base_power_dbm
        figure_db = config.base_noise_figure_db if is_up else config.device_noise_figure_db
        noise_dbm = noise_power_dbm(bandwidth_hz, figure_db)
        return power_dbm + config.antenna_gain_db - loss_db - shadow_db - noise_dbm

    def _shadow_db(self, period: int) -> Array:
        """Shadowing of a period, from that of all before it: a checkpoint needs no more."""
        for n in range(len(self._shadows_db), period + 1):
            place = self.positions_m(n * self._period_s)
            self._shadows_db.append(
                shadowing_step(
                    self._shadows_db[-1], np.hypot(*(place - self._place).T),
                    sigma_db=self._sigma_db, correlation_m=self._correlation_m,
                    normal=self._normal(n),
                )
            )  # fmt: skip
            self._place = place
        return self._shadows_db[period]

    def _normal(self, period: int) -> Array:
        return rng_for(self.seed, _SHADOW_STREAM, period).standard_normal(self.num_devices)


def movers_of(
    config: PathConfig, paths: Sequence[Trajectory], num_devices: int, seed: int
) -> list[Mobility]:
    near, far = config.min_distance_m, config.cell_radius_m
    if config.mobility == "static":
        return [Static(far, near, seed=seed, device=d) for d in range(num_devices)]
    if config.mobility == "waypoint":
        speed = (config.speed_min_mps, config.speed_max_mps)
        return [RandomWaypoint(far, near, speed, seed=seed, device=d) for d in range(num_devices)]
    return [paths[d % len(paths)] for d in range(num_devices)]
