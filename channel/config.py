"""What a channel is made of, and presets by name."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic.dataclasses
from pydantic import BeforeValidator, Field, ValidationError

from channel.bounds import (
    NUMPY,
    STRICT,
    Count,
    CountOrZero,
    Decibel,
    NonNegative,
    Number,
    Positive,
    Several,
    Share,
    T,
)
from channel.energy import EnergyConfig
from channel.traces import FORMATS, TraceFormat

Fading = Literal["none", "rayleigh", "rician", "ar1", "clarke"]
Sharing = Literal["shared", "orthogonal"]
Scheduler = Literal["equal", "round-robin", "proportional-fair", "best-first"]
Adaptation = Literal["shannon", "cqi", "finite-blocklength"]
# TOML has no null: there, and on a command line, it is the word.
OrNone = Annotated[T | None, BeforeValidator(lambda v: None if str(v).lower() == "none" else v)]
PRESET_FOLDER = Path(__file__).parent / "presets"


@pydantic.dataclasses.dataclass(frozen=True, slots=True, config=STRICT)
class PathConfig:
    """Where the mean SNR comes from when it is not given: geometry and powers."""

    scenario: Literal["none", "umi", "uma", "inh"] = "none"
    """'none' (the SNR is given), or TR 38.901's 'umi', 'uma', 'inh'"""
    carrier_hz: Positive = 3.5e9
    """carrier frequency"""
    base_power_dbm: Number = 30.0
    """of the base station, downlink"""
    device_power_dbm: Number = 23.0
    """of a device, uplink"""
    antenna_gain_db: Number = 0.0
    """both ends together"""
    device_noise_figure_db: Number = 9.0
    """of a device's receiver, downlink"""
    base_noise_figure_db: Number = 5.0
    """of the base station's receiver, uplink"""
    terminal_height_m: Annotated[float, Field(gt=1, le=13), NUMPY] = 1.5
    """height of a device, between 1 and 13 m"""
    cell_radius_m: Annotated[float, Field(le=1e6), NUMPY] = 200.0
    """devices are within it"""
    min_distance_m: NonNegative = 10.0
    """and no nearer than this"""
    mobility: Literal["static", "waypoint", "trajectory"] = "static"
    """'static', 'waypoint' (random places, one after another) or 'trajectory' (from a file)"""
    speed_min_mps: Positive = 0.5
    """slowest way (waypoint)"""
    speed_max_mps: Number = 1.5
    """fastest way (waypoint); also what the Doppler shift follows from, unless mobility is
    'trajectory', whose own speed counts"""
    trajectory_file: str = ""
    """CSV with the columns device, time_s, x_m, y_m (trajectory)"""

    def __post_init__(self) -> None:
        if self.cell_radius_m <= self.min_distance_m:
            raise ValueError(
                f"channel.path.cell_radius_m must be above channel.path.min_distance_m "
                f"{self.min_distance_m}, got {self.cell_radius_m}"
            )
        if self.speed_max_mps < self.speed_min_mps:
            raise ValueError(
                f"channel.path.speed_max_mps must be at least channel.path.speed_min_mps "
                f"{self.speed_min_mps}, got {self.speed_max_mps}"
            )
        if (self.mobility == "trajectory") != bool(self.trajectory_file):
            raise ValueError(
                "channel.path.mobility 'trajectory' and channel.path.trajectory_file need each "
                f"other, got {self.mobility!r} and {self.trajectory_file!r}"
            )


@pydantic.dataclasses.dataclass(frozen=True, slots=True, config=STRICT)
class LinkConfig:
    """From SNR to rate and errors."""

    adaptation: Adaptation = "shannon"
    """'shannon' (capacity less a gap), 'cqi' (TS 38.214's table) or 'finite-blocklength'"""
    snr_gap_db: NonNegative = 0.0
    """loss of real modulation and coding (shannon)"""
    block_symbols: Count = 1000
    """channel uses of a code block (cqi, finite-blocklength)"""
    target_error: Annotated[float, Field(gt=0, lt=0.5), NUMPY] = 0.1
    """block error rate that the rate is chosen for (finite-blocklength)"""
    max_tries: Annotated[int, Field(ge=1, le=1000), NUMPY] = 4
    """transmissions of a block before it is given up (cqi, finite-blocklength)"""
    combining: Literal["none", "chase"] = "none"
    """'none' (ARQ: each try for itself) or 'chase' (HARQ: copies add their SNRs)"""
    is_reliable: bool = True
    """True: a block given up is sent again by the layer above; False: it loses the payload"""
    burst_start: Share = 0.0
    """probability that a good round is followed by a bad one, in which nothing arrives; 0: none"""
    burst_end: Annotated[float, Field(gt=0, le=1), NUMPY] = 0.5
    """probability that a bad round is followed by a good one"""


@pydantic.dataclasses.dataclass(frozen=True, slots=True, config=STRICT)
class ChannelConfig:
    """The cell: its band, its links, what is known about them, and what they cost."""

    preset: str = "iot-shared-1mhz"
    """where the other values come from unless they are given; `airllm channel list` names them,
    and trace:<file> replays a recorded link"""
    sharing: Sharing = "shared"
    """'shared': one band for all; 'orthogonal': a band for each device"""
    scheduler: Scheduler = "equal"
    """who gets a shared band: 'equal' (a part of the time each), 'round-robin', 'best-first' or
    'proportional-fair' (one device a slot of coherence_s)"""
    bandwidth_hz: Positive = 1e6
    """of the shared band, or of each device's own"""
    snr_db: OrNone[Decibel] = 5.0
    """mean SNR; none: from path.scenario, from the trace, or drawn from snr_choices_db for each
    device and round"""
    model: str = ""
    """source of the mean SNR of your own, <module>:<class>, in place of snr_db, trace and geometry;
    fading comes on top unless it is none"""
    snr_choices_db: Several[Decibel] = (-5.0, 0.0, 5.0, 10.0, 15.0)
    """what is drawn from, each with the same probability"""
    snr_spread_db: NonNegative = 0.0
    """standard deviation of a fixed offset of each device from the mean SNR"""
    uplink_offset_db: Number = 0.0
    """uplink SNR less downlink SNR, where powers do not say"""
    trace: str = ""
    """CSV of a recorded link; each device starts at a place of its own in it"""
    trace_format: Literal["plain", "ucc-5g", "ucc-5g-cqi", "cicv5g", "nyu-mets"] = "plain"
    """'plain' (time_s, snr_db), 'ucc-5g', 'ucc-5g-cqi', 'cicv5g' or 'nyu-mets'"""
    trace_value_column: str = ""
    """name of the column with the value, where it is not the format's"""
    trace_time_column: str = ""
    """name of the column with the time, where it is not the format's"""
    trace_time_format: str = ""
    """what the time is, where it is not what the format says: 'seconds', 'milliseconds',
    'microseconds', 'iso' (ISO 8601 dates), or a strptime pattern such as '%d.%m.%Y %H:%M:%S'"""
    trace_kind: Literal["", "snr_db", "cqi", "throughput"] = ""
    """what the value is, where it is not what the format says: 'snr_db', 'cqi', 'throughput'"""
    trace_unit: str = ""
    """of a throughput, where it is not the format's: 'bit/s', 'kbit/s', 'Mbit/s', 'Gbit/s'"""
    fading: Fading = "rayleigh"
    """'none'; a draw each round: 'rayleigh', 'rician', 'ar1' (correlated from round to round);
    'clarke' (in time, within the round as well)"""
    rician_k_db: Number = 7.0
    """power of the direct path over the scattered ones, where no scenario says"""
    doppler_hz: OrNone[NonNegative] = None
    """largest Doppler shift (clarke, ar1); none: from the speed of devices and path.carrier_hz"""
    coherence_s: Positive = 0.01
    """slot in which the channel counts as constant (clarke, traces, devices on the move, and all
    schedulers but 'equal')"""
    deadline_s: Positive = 1.0
    """air time of a round; what is not through by then is lost"""
    round_period_s: Positive = 1.0
    """virtual time from one round's start to the next one's"""
    csi_error_db: NonNegative = 0.5
    """standard deviation of the error in the reported SNR"""
    csi_quantisation_db: NonNegative = 1.0
    """step of the reported SNR; 0: none"""
    csi_margin_db: Number = 1.0
    """taken off the reported SNR when a rate is planned"""
    csi_delay_s: NonNegative = 0.0
    """age of the reported SNR"""
    report_bits: CountOrZero = 64
    """uplink bits of a device's report, counted as overhead"""
    ack_bits: CountOrZero = 8
    """uplink bits of an acknowledgement, counted as overhead"""
    residual_error_rate: Share = 0.0
    """probability that a payload arrives with a wrong bit that the link did not notice"""
    away_per_s: NonNegative = 0.0
    """how often a device that is there goes away; 0: never"""
    away_mean_s: Positive = 1.0
    """how long it stays away on average"""
    path: PathConfig = field(default_factory=PathConfig)
    link: LinkConfig = field(default_factory=LinkConfig)
    energy: EnergyConfig = field(default_factory=EnergyConfig)

    def __post_init__(self) -> None:
        preset_values(self.preset)
        trace_format_of(self)
        if 0.0 < self.csi_quantisation_db < 1e-3:
            raise ValueError(
                f"channel.csi_quantisation_db must be 0 or >= 0.001, got {self.csi_quantisation_db}"
            )
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
        is_given = self.snr_db is not None or self.path.scenario != "none" or self.trace
        if not self.snr_choices_db and not is_given:
            raise ValueError(
                "channel.snr_choices_db must not be empty while channel.snr_db is none; "
                "give an SNR or a list of them"
            )
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
    except ValidationError as error:
        raise ValueError(f"channel.trace_{error.errors()[0]['ctx']['error']}") from None


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
