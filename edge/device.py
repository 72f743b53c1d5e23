"""An edge device: it holds an adapter, installs what arrives intact, measures, and trains."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from airllm.lora.adapter import Adapter
from airllm.lora.evaluation import Metrics, evaluate_together
from airllm.lora.payload import PayloadError, decode, encode
from airllm.lora.sensitivity import Importance
from airllm.models.base import BaseModel
from airllm.models.batches import Examples
from airllm.models.head import Head
from airllm.protocol import DeviceReport
from edge.local_update import LocalTask, LocalWork, Trained

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """What does not change while the federation runs."""

    device: int
    entropy: float
    """normalised token entropy of its text"""
    oov_rate: float
    num_examples: int
    examples: Examples
    """labelled text on which everything it reports is measured"""
    adapter_rank: int
    """rank to which accumulated residual updates are recompressed"""
    work: LocalWork | None = None
    """what it trains on, and how (federated mode)"""


@dataclass(frozen=True, slots=True)
class DeviceState:
    """What a device keeps between rounds."""

    device_adapter: Adapter
    update_number: int = 0
    """of the last update installed; 0: none"""
    metrics: Metrics | None = None
    """measured with ``device_adapter``; None: not measured yet"""
    head: Head | None = None
    """preloaded with the base model"""
    trained: Adapter | None = None
    """its own update, from training until it is sent"""


class Device:
    """Installs updates and measures them; knows neither Flower nor the channel."""

    def __init__(self, base: BaseModel, profile: DeviceProfile, state: DeviceState) -> None:
        self.base, self.profile, self.state = base, profile, state

    @property
    def work(self) -> LocalWork:
        """What it trains on; only a device of federated mode has any."""
        if self.profile.work is None:
            raise ValueError(f"device {self.profile.device} was asked to train in remote mode")
        return self.profile.work

    def deploy(self, head: Head | None) -> None:
        """Take the head that comes with the base model, before the first round."""
        work = self.profile.work
        device_adapter = Adapter.zero(self.base.specs) if work is None else work.initial
        self.state = DeviceState(device_adapter, head=head)

    def install(self, data: bytes) -> bool:
        """Install a payload; a damaged one leaves everything as it was, and gives False."""
        shared = None if self.profile.work is None else self.profile.work.shared_down
        try:
            update = decode(data, self.base.specs, shared_down=shared)
        except PayloadError as error:
            logger.info("device %d keeps its adapter: %s", self.profile.device, error)
            return False
        is_same = update.coding == "residual" and not update.adapter.ranks.any()
        self.state = replace(
            self.state,
            device_adapter=update.onto(self.state.device_adapter, self.profile.adapter_rank),
            update_number=update.number,
            metrics=self.state.metrics if is_same else None,
        )
        return True

    def report(self, *, is_installed: bool = False) -> DeviceReport:
        """What it tells the cloud; measures only if something has changed since the last time."""
        measure([self])
        metrics = self.state.metrics
        assert metrics is not None
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

    def task(self, ranks: NDArray[np.int64], importance: Importance, round_index: int) -> LocalTask:
        """What it has to train, asked to do so at these ranks."""
        return LocalTask(
            self.work,
            self.state.device_adapter,
            ranks,
            importance,
            self.profile.device,
            round_index,
        )

    def take_trained(self, trained: Trained) -> None:
        """Keep its own update until that is granted its way (`send`)."""
        self.state = replace(self.state, trained=trained.adapter)

    def send(self, ranks: NDArray[np.int64], number: int) -> bytes:
        """The update's bytes at the ranks that were granted; what was cut is gone."""
        work, trained = self.work, self.state.trained
        if trained is None:
            raise ValueError(f"device {self.profile.device} has no update to send")
        self.state = replace(self.state, trained=None)
        return encode(
            trained.truncate(ranks),
            number=number,
            number_format=work.number_format,
            coding="residual" if work.sends == "change" else "absolute",
            is_half=work.shared_down is not None,
        )


def measure(devices: Sequence[Device]) -> None:
    """Measure, in the same passes, all devices that have changed since they last were.

    All have the same base and head.
    """
    waiting = [device for device in devices if device.state.metrics is None]
    if not waiting:
        return
    found = evaluate_together(
        waiting[0].base, waiting[0].state.head,
        [device.state.device_adapter for device in waiting],
        [device.profile.examples for device in waiting],
    )  # fmt: skip
    for device, metrics in zip(waiting, found, strict=True):
        device.state = replace(device.state, metrics=metrics)
