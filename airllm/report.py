"""What a device tells the cloud about itself: its request for an update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """One device's state with the adapter it holds; the link is not its own to report."""

    device: int
    """index of the device, 0..num_devices - 1"""
    entropy: float
    """normalised token entropy of its text, 0..1"""
    oov_rate: float
    """share of its words that the reference vocabulary does not have, 0..1"""
    num_examples: int
    loss: float
    """cross-entropy in nats with the adapter it holds"""
    accuracy: float
    update_number: int
    """number of the last update it installed; 0: none yet"""
    is_installed: bool = False
    """True when the update this answers was intact and is now in use"""

    def to_metrics(self) -> dict[str, int | float]:
        """Plain numbers, as a Flower MetricRecord takes them."""
        return {key: int(v) if isinstance(v, bool) else v for key, v in asdict(self).items()}

    @staticmethod
    def from_metrics(metrics: Mapping[str, object]) -> DeviceReport:
        """The inverse of `to_metrics`; raises ValueError when a field is missing."""
        missing = [f.name for f in fields(DeviceReport) if f.name not in metrics]
        if missing:
            raise ValueError(f"a device's report lacks {', '.join(missing)}")
        kinds = {"int": int, "float": float, "bool": bool}
        return DeviceReport(
            **{f.name: kinds[str(f.type)](metrics[f.name]) for f in fields(DeviceReport)}
        )
