"""An edge device: it holds an adapter, installs what arrives intact, and measures."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from airllm.lora import Adapter, accumulate
from airllm.models import BaseModel
from airllm.payload import PayloadError, decode
from airllm.report import DeviceReport
from airllm.tuning import Batch, Head, Metrics, evaluate

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """What does not change while the federation runs."""

    device: int
    entropy: float
    """normalised token entropy of its text"""
    oov_rate: float
    num_examples: int
    batches: Sequence[Batch]
    """its own labelled text, on which everything it reports is measured"""
    hold_rank: int
    """rank to which accumulated residual updates are recompressed"""


@dataclass(frozen=True, slots=True)
class DeviceState:
    """What a device keeps between rounds."""

    held: Adapter
    update_number: int = 0
    """round of the last update installed; 0: none"""
    metrics: Metrics | None = None
    """measured with ``held``; None: not measured yet"""
    head: Head | None = None
    """preloaded with the base model"""


class Device:
    """Installs updates and measures them; knows neither Flower nor the channel."""

    def __init__(self, base: BaseModel, profile: DeviceProfile, state: DeviceState) -> None:
        self.base, self.profile, self.state = base, profile, state

    def deploy(self, head: Head | None) -> DeviceReport:
        """Take the head that comes with the base model, before the first round."""
        self.state = DeviceState(Adapter.zero(self.base.specs), head=head)
        return self.report()

    def report(self) -> DeviceReport:
        """The request for an update; measures only if something changed since the last time."""
        return self._report(is_installed=False)

    def install(self, data: bytes) -> DeviceReport:
        """Install a payload and measure; a damaged one leaves everything as it was."""
        try:
            update = decode(data, self.base.specs)
        except PayloadError as error:
            logger.info("device %d keeps its adapter: %s", self.profile.device, error)
            return self._report(is_installed=False)
        if update.coding == "residual":
            held = accumulate(self.state.held, update.adapter, self.profile.hold_rank)
        else:
            held = update.adapter
        is_same = update.coding == "residual" and not update.adapter.ranks.any()
        self.state = replace(
            self.state,
            held=held,
            update_number=update.number,
            metrics=self.state.metrics if is_same else None,
        )
        return self._report(is_installed=True)

    def _report(self, *, is_installed: bool) -> DeviceReport:
        metrics = self.state.metrics
        if metrics is None:
            metrics = evaluate(
                self.base, self.state.head, self.state.held, list(self.profile.batches)
            )
            self.state = replace(self.state, metrics=metrics)
        return DeviceReport(
            device=self.profile.device,
            entropy=self.profile.entropy,
            oov_rate=self.profile.oov_rate,
            num_examples=self.profile.num_examples,
            loss=metrics.loss,
            accuracy=metrics.accuracy,
            update_number=self.state.update_number,
            is_installed=is_installed,
        )
