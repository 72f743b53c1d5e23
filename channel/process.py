"""The SNR of every device's link over time, in both directions."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from itertools import count, repeat
from typing import Protocol

import numpy as np

from channel.config import ChannelConfig, trace_format_of
from channel.fading import (
    Ar1Process,
    ClarkeProcess,
    coherence_time_s,
    doppler_hz,
    rayleigh_power,
    rician_power,
)
from channel.geometry import Array, LargeScale, Times, movers_of, periods
from channel.mobility import Trajectory, read_trajectories
from channel.streams import rng_for
from channel.traces import read_trace
from channel.units import linear_to_db

logger = logging.getLogger(__name__)

_PLACE_STEP_S = 0.1  # in which a car at 30 m/s gets 3 m on
_SLOW_BPS = 1e4  # no modern link's best is below this: the numbers are in another unit
_SNR_STREAM, _SPREAD_STREAM, _TRACE_STREAM = 20, 21, 26


class SnrModel(Protocol):
    """A source of the mean SNR of one's own, before small-scale fading."""

    is_constant: bool
    """True: within a round the SNR stays what it is at the start; False: it is asked for again in
    every slot of ``coherence_s``"""

    def snr_db(self, time_s: float, direction: str) -> Array:
        """[devices] at a virtual time >= 0, ``direction`` 'down' or 'up'.

        Times come in any order, and the same time has to give the same SNR.
        """
        ...


class LinkProcess:
    """Mean SNR from a number, a list, a trace, geometry or a model of one's own; fading on top.

    Traces and moving devices go on within a round, as Clarke's fading does. Shadowing moves on
    every ``round_period_s``, and so does AR(1) fading, but not within a round: ``start_s``, a
    round's, says which period counts, unless it is that of the time asked for.
    """

    def __init__(
        self,
        config: ChannelConfig,
        num_devices: int,
        *,
        seed: int,
        model: SnrModel | None = None,
    ) -> None:
        if config.model and model is None:
            raise ValueError(
                f"channel.model {config.model!r} names an object; make it and pass it as model"
            )
        if model is not None:
            _check_model(model, config.model)
        self.config, self.num_devices, self.seed, self._model = config, num_devices, seed, model
        spread = rng_for(seed, _SPREAD_STREAM).standard_normal(num_devices)
        self._offset_db = config.snr_spread_db * spread
        paths: list[Trajectory] = []
        if config.path.mobility == "trajectory":
            paths = read_trajectories(config.path.trajectory_file)
        self._large_scale = None
        if config.path.scenario != "none" and not config.model:
            movers = movers_of(config.path, paths, num_devices, seed)
            self._large_scale = LargeScale(config.path, config.round_period_s, movers, seed=seed)
        self._trace = None
        if config.trace and not config.model:
            self._trace = read_trace(config.trace, trace_format_of(config))
            logger.info("trace %s: %s", config.trace, self._trace.report)
            largest = self._trace.values.max()
            if self._trace.kind == "throughput" and not config.trace_unit and largest < _SLOW_BPS:
                logger.warning(
                    "trace %s: its largest throughput is %g bit/s; if its numbers are in another "
                    "unit, set channel.trace_unit, such as Mbit/s",
                    config.trace, largest,
                )  # fmt: skip
            form = trace_format_of(config)
            step_s, is_said = self._trace.report.step_s, bool(config.trace_time_format)
            if form.time_column and form.time_format == "seconds" and not is_said and step_s > 1.0:
                logger.warning(
                    "trace %s: its samples are %g s apart; if its times are in another unit, set "
                    "channel.trace_time_format, such as milliseconds (seconds, if they are right)",
                    config.trace, step_s,
                )  # fmt: skip
            share = rng_for(seed, _TRACE_STREAM).uniform(size=num_devices)
            self._trace_start_s = share * self._trace.duration_s
        shift_hz = config.doppler_hz
        if shift_hz is None:
            fastest = max((path.speed_max_mps for path in paths), default=None)
            speed_mps = config.path.speed_max_mps if fastest is None else fastest
            shift_hz = doppler_hz(speed_mps, config.path.carrier_hz)
        if config.fading == "clarke" and config.coherence_s > coherence_time_s(shift_hz):
            logger.warning(
                "channel.coherence_s %g s is longer than the channel stays alike at a Doppler "
                "shift of %.3g Hz: set it to %.2g s or less",
                config.coherence_s, shift_hz, coherence_time_s(shift_hz),
            )  # fmt: skip
        self._clarke = self._ar1 = None
        if config.fading == "clarke":
            self._clarke = ClarkeProcess(num_devices, shift_hz, seed=seed)
        elif config.fading == "ar1":
            self._ar1 = Ar1Process(num_devices, shift_hz, config.round_period_s, seed=seed)

    def mean_snr_db(self, round_index: int, time_s: Times, direction: str = "down") -> Array:
        """[devices] before small-scale fading, at one time or at one for each device."""
        config = self.config
        if self._model is not None:
            times_s = np.broadcast_to(np.asarray(time_s, dtype=float), self.num_devices)
            mean_db = np.empty(self.num_devices)
            for one_s in np.unique(times_s):
                found = self._from_model(self._model, float(one_s), direction)
                mean_db[times_s == one_s] = found[times_s == one_s]
            return self._offset_db + mean_db
        if self._large_scale is not None:
            return self._offset_db + self._large_scale.snr_db(
                time_s, config.bandwidth_hz, direction
            )
        if config.snr_db is not None:
            mean: Array | float = config.snr_db
        elif self._trace is not None:
            mean = self._trace.snr_db(time_s + self._trace_start_s, config.bandwidth_hz)
        else:
            choices = np.asarray(config.snr_choices_db)
            draw = rng_for(self.seed, _SNR_STREAM, round_index).uniform(size=self.num_devices)
            mean = choices[(draw * len(choices)).astype(int)]
        return mean + self._offset_db + (config.uplink_offset_db if direction == "up" else 0.0)

    def snr_db(
        self,
        round_index: int,
        time_s: Times,
        direction: str = "down",
        start_s: float | None = None,
    ) -> Array:
        """[devices] with fading, at one time of a round, or, given the round's start, at one for
        each device. Up and down fade alike (TDD)."""
        power = self._power(round_index, time_s, start_s)
        return self.mean_snr_db(round_index, time_s, direction) + linear_to_db(power)

    def walk(
        self, round_index: int, begin_s: float, step_s: float, direction: str, start_s: float
    ) -> Iterator[Array]:
        """[devices] SNR at begin, begin + step, and so on, within one round."""
        if self._clarke is not None:
            powers: Iterator[Array] = self._clarke.walk(begin_s, step_s)
        else:
            powers = repeat(self._power(round_index, begin_s, start_s))
        # Places cost more than all else of a slot, and change least.
        every = 1 if self._large_scale is None else max(round(_PLACE_STEP_S / step_s), 1)
        for number, power in zip(count(), powers):
            if number == 0 or (self._moves and number % every == 0):
                mean_db = self.mean_snr_db(round_index, begin_s + number * step_s, direction)
            yield mean_db + linear_to_db(power)

    @property
    def is_constant(self) -> bool:
        """True: nothing changes within a round."""
        return self._clarke is None and not self._moves

    @property
    def _moves(self) -> bool:
        """The mean SNR changes within a round."""
        if self._model is not None:
            return not self._model.is_constant
        return self._trace is not None or (
            self._large_scale is not None and self.config.path.mobility != "static"
        )

    @property
    def has_geometry(self) -> bool:
        """True: the mean SNR follows from places and powers."""
        return self._large_scale is not None

    def positions_m(self, time_s: float) -> Array | None:
        """[devices, 2] where there is a geometry."""
        return None if self._large_scale is None else self._large_scale.positions_m(time_s)

    def _from_model(self, model: SnrModel, time_s: float, direction: str) -> Array:
        # An estimate may be older than the simulation.
        snr_db = np.asarray(model.snr_db(max(time_s, 0.0), direction), dtype=float)
        if snr_db.shape != (self.num_devices,) or np.isnan(snr_db).any():
            raise ValueError(
                f"{self.config.model or type(model).__name__} must give an SNR in dB for each of "
                f"{self.num_devices} devices, got {snr_db} at {time_s:g} s"
            )
        return snr_db

    def _power(self, round_index: int, time_s: Times, start_s: float | None) -> Array:
        config, key = self.config, {"seed": self.seed, "round_index": round_index}
        if self._clarke is not None:
            return self._clarke.power(time_s)
        if self._ar1 is not None:
            period_s = self.config.round_period_s
            return self._ar1.power(int(periods(time_s if start_s is None else start_s, period_s)))
        if config.fading == "rayleigh":
            return rayleigh_power(self.num_devices, **key)
        if config.fading == "rician":
            k_db: Array | float = config.rician_k_db
            if self._large_scale is not None:
                k_db = self._large_scale.rician_k_db
            return rician_power(self.num_devices, k_db, **key)
        return np.ones(self.num_devices)


def _check_model(model: SnrModel, name: str) -> None:
    name = name or type(model).__name__
    if not hasattr(model, "is_constant"):
        raise ValueError(f"channel model {name} needs is_constant; see channel.process.SnrModel")
    try:
        inspect.signature(model.snr_db).bind(0.0, "down")
    except (AttributeError, TypeError):
        raise ValueError(
            f"channel model {name} needs a method snr_db(time_s, direction); see "
            f"channel.process.SnrModel"
        ) from None
