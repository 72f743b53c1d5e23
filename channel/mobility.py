"""Where devices are: at rest, on random ways, or along a recorded path."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from channel.streams import rng_for

Array = NDArray[np.float64]

_PLACE_STREAM, _WAY_STREAM = 12, 13


class Mobility(Protocol):
    """A device's position over time; any time may be asked for, in any order."""

    def position_m(self, time_s: float) -> Array:
        """[2] east and north of the base station."""
        ...


class Static:
    """A place drawn uniformly over a ring around the base station, for good."""

    def __init__(self, radius_m: float, min_distance_m: float, *, seed: int, device: int) -> None:
        self._at = _place(radius_m, min_distance_m, rng_for(seed, _PLACE_STREAM, device))

    def position_m(self, time_s: float) -> Array:
        return self._at


class RandomWaypoint:
    """From one random place to the next, each way at a speed of its own (Johnson and Maltz 1996).

    Speeds are uniform in [v_min, v_max] with v_min > 0, or the mean speed over time would fall
    towards 0; it is (v_max - v_min) / ln(v_max / v_min), as slow ways last longer.
    """

    def __init__(
        self,
        radius_m: float,
        min_distance_m: float,
        speed_mps: tuple[float, float],
        *,
        seed: int,
        device: int,
    ) -> None:
        if not 0.0 < speed_mps[0] <= speed_mps[1]:
            raise ValueError(f"speed_mps must be 0 < v_min <= v_max, got {speed_mps}")
        self._rng = rng_for(seed, _WAY_STREAM, device)
        self._radius_m, self._min_distance_m, self._speed_mps = radius_m, min_distance_m, speed_mps
        self._times = [0.0]
        self._places = [_place(radius_m, min_distance_m, rng_for(seed, _PLACE_STREAM, device))]

    def position_m(self, time_s: float) -> Array:
        time_s = max(time_s, 0.0)  # an estimate may be older than the simulation
        while self._times[-1] <= time_s:
            goal = _place(self._radius_m, self._min_distance_m, self._rng)
            speed = self._rng.uniform(*self._speed_mps)
            length = float(np.hypot(*(goal - self._places[-1])))
            # Two equal places in a row would stop the clock.
            self._times.append(self._times[-1] + max(length / speed, 1e-3))
            self._places.append(goal)
        index = int(np.searchsorted(self._times, time_s, side="right"))
        start, end = self._times[index - 1], self._times[index]
        share = (time_s - start) / (end - start)
        return self._places[index - 1] + share * (self._places[index] - self._places[index - 1])


class Trajectory:
    """A recorded path, linear between its points, repeated when it is over."""

    def __init__(self, times_s: ArrayLike, positions_m: ArrayLike) -> None:
        self._times = np.asarray(times_s, dtype=float)
        self._positions = np.asarray(positions_m, dtype=float)  # [points, 2]
        if self._positions.shape != (len(self._times), 2) or len(self._times) < 2:
            raise ValueError("a trajectory needs two points or more, each with time, x and y")
        if not (np.diff(self._times) > 0).all():
            raise ValueError("times_s of a trajectory must rise from point to point")

    @property
    def speed_max_mps(self) -> float:
        """On its fastest stretch."""
        way_m = np.hypot(*np.diff(self._positions, axis=0).T)
        return float((way_m / np.diff(self._times)).max())

    def position_m(self, time_s: float) -> Array:
        start, time_s = self._times[0], max(time_s, 0.0)
        t = start + (time_s - start) % (self._times[-1] - start)
        return np.array([np.interp(t, self._times, self._positions[:, i]) for i in (0, 1)])


def read_trajectories(path: Path | str) -> list[Trajectory]:
    """One path for each device of a CSV with the columns device, time_s, x_m, y_m."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"channel.path.trajectory_file {path} does not exist")
    points: dict[str, list[tuple[float, float, float]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
        for number, row in enumerate(reader, start=1):
            try:
                point = (float(row["time_s"]), float(row["x_m"]), float(row["y_m"]))
                points.setdefault(row["device"], []).append(point)
            except (KeyError, TypeError, ValueError):
                raise ValueError(
                    f"{path}, row {number}, must have numbers in the columns device, time_s, x_m, "
                    f"y_m"
                ) from None
    if not points:
        raise ValueError(f"{path} has no rows")
    return [Trajectory([p[0] for p in of], [p[1:] for p in of]) for of in points.values()]


def _place(radius_m: float, min_distance_m: float, rng: np.random.Generator) -> Array:
    # Uniform over the area of the ring: the square of the radius is uniform.
    distance = np.sqrt(rng.uniform(min_distance_m**2, radius_m**2))
    angle = rng.uniform(0.0, 2.0 * np.pi)
    return distance * np.array([np.cos(angle), np.sin(angle)])
