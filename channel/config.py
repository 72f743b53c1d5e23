"""What a channel is made of, and presets by name."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from channel.checks import check, check_one_of
from channel.energy import EnergyConfig
from channel.pathloss import SCENARIOS
from channel.traces import FORMATS, TraceFormat

FADINGS = ("none", "rayleigh", "rician", "ar1", "clarke")
SHARINGS = ("shared", "orthogonal")
SCHEDULERS = ("equal", "round-robin", "proportional-fair", "best-first")
MOBILITIES = ("static", "waypoint", "trajectory")
ADAPTATIONS = ("shannon", "cqi", "finite-blocklength")
PRESET_FOLDER = Path(__file__).parent / "presets"


@dataclass(frozen=True, slots=True)
class PathConfig:
    """Where the mean SNR comes from when it is not given: geometry and powers."""

    scenario: str = "none"
    """'none' (the SNR is given), or TR 38.901's 'umi', 'uma', 'inh'"""
    carrier_hz: float = 3.5e9
    """carrier frequency"""
    base_power_dbm: float = 30.0
    """of the base station, downlink"""
    device_power_dbm: float = 23.0
    """of a device, uplink"""
    antenna_gain_db: float = 0.0
    """both ends together"""
    device_noise_figure_db: float = 9.0
    """of a device's receiver, downlink"""
    base_noise_figure_db: float = 5.0
    """of the base station's receiver, uplink"""
    terminal_height_m: float = 1.5
    """height of a device, between 1 and 13 m"""
    cell_radius_m: float = 200.0
    """devices are within it"""
    min_distance_m: float = 10.0
    """and no nearer than this"""
    mobility: str = "static"
    """'static', 'waypoint' (random places, one after another) or 'trajectory' (from a file)"""
    speed_min_mps: float = 0.5
    """slowest way (waypoint)"""
    speed_max_mps: float = 1.5
    """fastest way (waypoint); also what the Doppler shift follows from, unless mobility is
    'trajectory', whose own speed counts"""
    trajectory_file: str = ""
    """CSV with the columns device, time_s, x_m, y_m (trajectory)"""

    def __post_init__(self) -> None:
        check_one_of("path.scenario", self.scenario, ("none", *SCENARIOS))
        check_one_of("path.mobility", self.mobility, MOBILITIES)
        check("path.carrier_hz", self.carrier_hz, lambda v: v > 0, "> 0")
        for key in (
            "base_power_dbm", "device_power_dbm", "antenna_gain_db", "device_noise_figure_db",
            "base_noise_figure_db",
        ):  # fmt: skip
            check(f"path.{key}", getattr(self, key), lambda v: True, "finite")
        height = self.terminal_height_m
        check("path.terminal_height_m", height, lambda v: 1.0 < v <= 13.0, "in (1, 13]")
        near, far = self.min_distance_m, self.cell_radius_m
        check("path.min_distance_m", near, lambda v: v >= 0, ">= 0")
        check("path.cell_radius_m", far, lambda v: v > near, f"above path.min_distance_m {near}")
        check("path.cell_radius_m", far, lambda v: v <= 1e6, "at most 1e6")
        slow, fast = self.speed_min_mps, self.speed_max_mps
        check("path.speed_min_mps", slow, lambda v: v > 0, "> 0")
        check(
            "path.speed_max_mps", fast, lambda v: v >= slow, f"at least path.speed_min_mps {slow}"
        )
        if (self.mobility == "trajectory") != bool(self.trajectory_file):
            raise ValueError(
                "channel.path.mobility 'trajectory' and channel.path.trajectory_file need each "
                f"other, got {self.mobility!r} and {self.trajectory_file!r}"
            )


@dataclass(frozen=True, slots=True)
class LinkConfig:
    """From SNR to rate and errors."""

    adaptation: str = "shannon"
    """'shannon' (capacity less a gap), 'cqi' (TS 38.214's table) or 'finite-blocklength'"""
    snr_gap_db: float = 0.0
    """loss of real modulation and coding (shannon)"""
    block_symbols: int = 1000
    """channel uses of a code block (cqi, finite-blocklength)"""
    target_error: float = 0.1
    """block error rate that the rate is chosen for (finite-blocklength)"""
    max_tries: int = 4
    """transmissions of a block before it is given up (cqi, finite-blocklength)"""
    combining: str = "none"
    """'none' (ARQ: each try for itself) or 'chase' (HARQ: copies add their SNRs)"""
    is_reliable: bool = True
    """True: a block given up is sent again by the layer above; False: it loses the payload"""
    burst_start: float = 0.0
    """probability that a good round is followed by a bad one, in which nothing arrives; 0: none"""
    burst_end: float = 0.5
    """probability that a bad round is followed by a good one"""

    def __post_init__(self) -> None:
        check_one_of("link.adaptation", self.adaptation, ADAPTATIONS)
        check_one_of("link.combining", self.combining, ("none", "chase"))
        check("link.snr_gap_db", self.snr_gap_db, lambda v: v >= 0, ">= 0")
        for key in ("block_symbols", "max_tries"):
            check(f"link.{key}", getattr(self, key), lambda v: v >= 1, ">= 1")
        check("link.max_tries", self.max_tries, lambda v: v <= 1000, "at most 1000")
        # From one half on, the rate would be capacity or more.
        check("link.target_error", self.target_error, lambda v: 0 < v < 0.5, "in (0, 0.5)")
        check("link.burst_start", self.burst_start, lambda v: 0 <= v <= 1, "in [0, 1]")
        check("link.burst_end", self.burst_end, lambda v: 0 < v <= 1, "in (0, 1]")


@dataclass(frozen=True, slots=True)
class ChannelConfig:
    """The cell: its band, its links, what is known about them, and what they cost."""

    preset: str = "iot-shared-1mhz"
    """where the other values come from unless they are given; `airllm channel list` names them,
    and trace:<file> replays a recorded link"""
    sharing: str = "shared"
    """'shared': one band for all; 'orthogonal': a band for each device"""
    scheduler: str = "equal"
    """who gets a shared band: 'equal' (a part of the time each), 'round-robin', 'best-first' or
    'proportional-fair' (one device a slot of coherence_s)"""
    bandwidth_hz: float = 1e6
    """of the shared band, or of each device's own"""
    snr_db: float | None = 5.0
    """mean SNR; none: from path.scenario, from the trace, or drawn from snr_choices_db for each
    device and round"""
    model: str = ""
    """source of the mean SNR of your own, <module>:<class>, in place of snr_db, trace and geometry;
    fading comes on top unless it is none"""
    snr_choices_db: tuple[float, ...] = (-5.0, 0.0, 5.0, 10.0, 15.0)
    """what is drawn from, each with the same probability"""
    snr_spread_db: float = 0.0
    """standard deviation of a fixed offset of each device from the mean SNR"""
    uplink_offset_db: float = 0.0
    """uplink SNR less downlink SNR, where powers do not say"""
    trace: str = ""
    """CSV of a recorded link; each device starts at a place of its own in it"""
    trace_format: str = "plain"
    """'plain' (time_s, snr_db), 'ucc-5g', 'ucc-5g-cqi', 'cicv5g' or 'nyu-mets'"""
    trace_value_column: str = ""
    """name of the column with the value, where it is not the format's"""
    trace_time_column: str = ""
    """name of the column with the time, where it is not the format's"""
    trace_time_format: str = ""
    """what the time is, where it is not what the format says: 'seconds', 'milliseconds',
    'microseconds', 'iso' (ISO 8601 dates), or a strptime pattern such as '%d.%m.%Y %H:%M:%S'"""
    trace_kind: str = ""
    """what the value is, where it is not what the format says: 'snr_db', 'cqi', 'throughput'"""
    trace_unit: str = ""
    """of a throughput, where it is not the format's: 'bit/s', 'kbit/s', 'Mbit/s', 'Gbit/s'"""
    fading: str = "rayleigh"
    """'none'; a draw each round: 'rayleigh', 'rician', 'ar1' (correlated from round to round);
    'clarke' (in time, within the round as well)"""
    rician_k_db: float = 7.0
    """power of the direct path over the scattered ones, where no scenario says"""
    doppler_hz: float | None = None
    """largest Doppler shift (clarke, ar1); none: from the speed of devices and path.carrier_hz"""
    coherence_s: float = 0.01
    """slot in which the channel counts as constant (clarke, traces, devices on the move, and all
    schedulers but 'equal')"""
    deadline_s: float = 1.0
    """air time of a round; what is not through by then is lost"""
    round_period_s: float = 1.0
    """virtual time from one round's start to the next one's"""
    csi_error_db: float = 0.5
    """standard deviation of the error in the reported SNR"""
    csi_quantisation_db: float = 1.0
    """step of the reported SNR; 0: none"""
    csi_margin_db: float = 1.0
    """taken off the reported SNR when a rate is planned"""
    csi_delay_s: float = 0.0
    """age of the reported SNR"""
    report_bits: int = 64
    """uplink bits of a device's report, counted as overhead"""
    ack_bits: int = 8
    """uplink bits of an acknowledgement, counted as overhead"""
    residual_error_rate: float = 0.0
    """probability that a payload arrives with a wrong bit that the link did not notice"""
    away_per_s: float = 0.0
    """how often a device that is there goes away; 0: never"""
    away_mean_s: float = 1.0
    """how long it stays away on average"""
    path: PathConfig = field(default_factory=PathConfig)
    link: LinkConfig = field(default_factory=LinkConfig)
    energy: EnergyConfig = field(default_factory=EnergyConfig)

    def __post_init__(self) -> None:
        preset_values(self.preset)
        check_one_of("sharing", self.sharing, SHARINGS)
        check_one_of("scheduler", self.scheduler, SCHEDULERS)
        check_one_of("fading", self.fading, FADINGS)
        check_one_of("trace_format", self.trace_format, tuple(FORMATS))
        trace_format_of(self)
        for key in ("bandwidth_hz", "deadline_s", "round_period_s", "coherence_s", "away_mean_s"):
            check(key, getattr(self, key), lambda v: v > 0, "> 0")
        for key in (
            "snr_spread_db", "csi_error_db", "csi_quantisation_db", "csi_delay_s", "report_bits",
            "ack_bits", "away_per_s",
        ):  # fmt: skip
            check(key, getattr(self, key), lambda v: v >= 0, ">= 0")
        for key in ("csi_margin_db", "rician_k_db", "uplink_offset_db"):
            check(key, getattr(self, key), lambda v: True, "finite")
        check(
            "csi_quantisation_db", self.csi_quantisation_db, lambda v: v == 0 or v >= 1e-3,
            "0 or >= 0.001",
        )  # fmt: skip
        if self.doppler_hz is not None:
            check("doppler_hz", self.doppler_hz, lambda v: v >= 0, ">= 0")
        rate = self.residual_error_rate
        check("residual_error_rate", rate, lambda v: 0.0 <= v <= 1.0, "in [0, 1]")
        if self.deadline_s > self.round_period_s:
            raise ValueError(
                f"channel.deadline_s {self.deadline_s} must not exceed channel.round_period_s "
                f"{self.round_period_s}: the next round starts then"
            )
        if self.deadline_s / self.coherence_s > 1e6:
            raise ValueError(
                f"channel.coherence_s {self.coherence_s} cuts a deadline of {self.deadline_s} s "
                f"into more than a million slots; make it longer"
            )
        if self.snr_db is not None:
            if isinstance(self.snr_db, list | tuple | np.ndarray):
                raise ValueError(
                    f"channel.snr_db must be one number, got {self.snr_db}; a list belongs into "
                    f"channel.snr_choices_db, with channel.snr_db none"
                )
            check("snr_db", self.snr_db, lambda v: abs(v) <= 300, "between -300 and 300")
        elif len(self.snr_choices_db) == 0 and self.path.scenario == "none" and not self.trace:
            raise ValueError(
                "channel.snr_choices_db must not be empty while channel.snr_db is none; "
                "give an SNR or a list of them"
            )
        for value in self.snr_choices_db:
            check("snr_choices_db", value, lambda v: abs(v) <= 300, "between -300 and 300")
        if self.trace and self.path.scenario != "none":
            raise ValueError("channel.trace and channel.path.scenario exclude each other; drop one")
        if self.snr_db is not None and not self.model:
            for key, named, off in (
                ("path.scenario", self.path.scenario, "none"), ("trace", self.trace, ""),
            ):  # fmt: skip
                if named != off:
                    raise ValueError(
                        f"channel.snr_db {self.snr_db:g} and channel.{key} {named!r} both say what "
                        f'the mean SNR is; set channel.snr_db = "none" to go by channel.{key}, '
                        f'or channel.{key} = "{off}" to go by the number'
                    )

    @staticmethod
    def from_preset(name: str, **overrides: Any) -> ChannelConfig:
        """A preset's values with others over them; of ``path``, ``link`` and ``energy`` a mapping
        replaces what it names, a whole `PathConfig`, `LinkConfig` or `EnergyConfig` all of it."""
        values = dict(preset_values(name))
        for key, given in overrides.items():
            is_part = isinstance(values.get(key), Mapping) and isinstance(given, Mapping)
            values[key] = {**values[key], **given} if is_part else given
        for key, section in (("path", PathConfig), ("link", LinkConfig), ("energy", EnergyConfig)):
            if isinstance(values.get(key), Mapping):
                values[key] = section(**values[key])
            elif not isinstance(values.get(key, section()), section):
                raise ValueError(
                    f"{key} must be a mapping or a {section.__name__}, got {values[key]!r}"
                )
        for key, value in values.items():
            if isinstance(value, list | np.ndarray):
                values[key] = tuple(np.asarray(value).tolist())
        if values.get("snr_db") == "none":
            values["snr_db"] = None
        return ChannelConfig(preset=name, **values)


def trace_format_of(config: ChannelConfig) -> TraceFormat:
    """The named format with what the configuration says of its own; bad values are named."""
    given: dict[str, Any] = {
        "value_column": config.trace_value_column,
        "time_column": config.trace_time_column,
        "time_format": config.trace_time_format,
        "kind": config.trace_kind,
        "unit": config.trace_unit,
    }
    try:
        return replace(FORMATS[config.trace_format], **{k: v for k, v in given.items() if v})
    except ValueError as error:
        raise ValueError(f"channel.trace_{error}") from None


def preset_names() -> list[str]:
    """The presets that come with the package."""
    return sorted(path.stem for path in PRESET_FOLDER.glob("*.toml"))


def preset_values(name: str, *, key: str = "channel.preset") -> Mapping[str, Any]:
    """What a preset sets, as in its file; raises ValueError that names the nearest preset and the
    configuration's ``key`` of it."""
    if name.startswith("trace:"):
        # A recorded SNR has its fading in it already.
        return {"trace": name.removeprefix("trace:"), "snr_db": "none", "fading": "none"}
    path = PRESET_FOLDER / f"{name}.toml"
    if name not in preset_names():
        near = difflib.get_close_matches(name, preset_names(), n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"{key} {name!r} is not known; {hint}presets are "
            f"{', '.join(preset_names())} and trace:<file>"
        )
    return tomllib.loads(path.read_text(encoding="utf-8"))
