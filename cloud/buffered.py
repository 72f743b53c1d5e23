"""Asynchronous rounds (FedBuff, Nguyen et al. 2022): devices go on by themselves.

Each device downloads, trains and uploads again and again; whenever so many updates are in, they are
merged. What happens first is decided by SimPy alone: a device's computation takes the virtual time
that its operations do, however long the host took for them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import simpy
from flwr.app import ConfigRecord, RecordDict
from numpy.typing import NDArray

from airllm.lora import Adapter
from airllm.report import DeviceReport
from channel.cell import Delivery, Direction
from channel.energy import idle_energy_j
from channel.fading import rng_for
from channel.open_cell import OpenCell
from cloud.air_grid import damaged
from cloud.federated import FederatedService
from cloud.roster import Roster, report_of
from cloud.rounds import RoundResult, Transfers, number_of
from cloud.service import LinkReport, Request

logger = logging.getLogger(__name__)

_PICK_STREAM = 92
_FRUITLESS = 100  # cycles of every device without a merge, after which nothing will come any more

Process = Generator[simpy.Event, Any, None]


@dataclass(slots=True)
class _Books:
    """What happened in one direction since the last merge; arrays [devices]."""

    ranks: NDArray[np.int64]
    planned_bits: NDArray[np.float64]
    payload_bits: NDArray[np.int64]
    sent_bits: NDArray[np.float64]
    delivered_bits: NDArray[np.int64]
    delay_s: NDArray[np.float64]
    is_delivered: NDArray[np.bool_]
    energy_j: NDArray[np.float64]

    @staticmethod
    def empty(devices: int, projections: int) -> _Books:
        zeros = [np.zeros(devices) for _ in range(4)]
        whole = [np.zeros(devices, dtype=np.int64) for _ in range(2)]
        return _Books(
            np.zeros((devices, projections), dtype=np.int64), zeros[0], whole[0], zeros[1],
            whole[1], zeros[2], np.zeros(devices, dtype=bool), zeros[3],
        )  # fmt: skip

    def add(self, delivery: Delivery, ranks: NDArray[np.int64], planned_bits: float) -> None:
        d = delivery.device
        self.ranks[d] = ranks
        self.planned_bits[d] += planned_bits
        self.payload_bits[d] += delivery.bits
        self.sent_bits[d] += delivery.sent_bits
        self.delivered_bits[d] += delivery.delivered_bits
        self.delay_s[d] += delivery.delay_s
        self.energy_j[d] += delivery.energy_j

    @property
    def transfers(self) -> Transfers:
        return Transfers(
            self.ranks, self.planned_bits, self.payload_bits, self.sent_bits,
            self.delivered_bits, self.delay_s, self.is_delivered,
        )  # fmt: skip


@dataclass(slots=True)
class _Buffer:
    """Updates that have come in and are not merged yet."""

    devices: list[int] = field(default_factory=list)
    updates: list[Adapter] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    """number of merges that each one started from"""


class BufferedRun:
    """A federation without synchronous rounds, from the deployment to the last merge."""

    def __init__(
        self,
        roster: Roster,
        service: FederatedService,
        cell: OpenCell,
        known: dict[int, DeviceReport],
        on_round: Callable[[RoundResult], None],
    ) -> None:
        self.roster, self.service, self.cell = roster, service, cell
        self.known, self.on_round = known, on_round
        devices = service.num_devices
        self.version = 0
        """merges so far"""
        self.log: list[tuple[float, int, str]] = []
        """(time in s, device, event): download, trained, upload, merge"""
        self._buffer = _Buffer()
        self._workers = min(service.config.participants or devices, devices)
        self._idle = list(range(devices))
        self._picks = self._fruitless = 0
        self._cycles = [0] * devices
        self._done = cell.env.event()
        self._reset()

    def run(self) -> None:
        """Until the last merge; results go to ``on_round`` with each one.

        Raises ValueError where no update comes in any more.
        """
        for _ in range(self._workers):
            self.cell.env.process(self._work())
        self.cell.env.run(until=self._done)

    def _reset(self) -> None:
        shape = self.service.num_devices, len(self.service.base.specs)
        self._down, self._up = _Books.empty(*shape), _Books.empty(*shape)
        self._overhead = np.zeros(shape[0], dtype=np.int64)
        self._compute = np.zeros((shape[0], 2))
        self._is_answered = np.ones(shape[0], dtype=bool)
        self._before = [self.known[d] for d in range(shape[0])]
        self._merged_at_s = self.cell.now_s

    def _work(self) -> Process:
        """One device after another, drawn from those that do nothing."""
        while True:
            rng = rng_for(self.service.participation.seed, _PICK_STREAM, self._picks)
            device = self._idle.pop(int(rng.integers(len(self._idle))))
            self._picks += 1
            sent = yield from self._cycle(device)
            self._cycles[device] += 1
            self._idle = sorted([*self._idle, device])
            if not sent:
                self._fruitless += 1
                if self._fruitless > _FRUITLESS * self.service.num_devices:
                    raise ValueError(
                        f"no update has come in over {self._fruitless} tries of the devices; their "
                        f"links carry too little (channel.*), or federated.dropout is too high"
                    )
                yield self.cell.env.timeout(self.cell.cell.config.round_period_s)

    def _cycle(self, device: int) -> Generator[simpy.Event, Any, bool]:
        """Download, train, upload; whether an update came up."""
        service, version, cycle = self.service, self.version, self._cycles[device]
        dropout = service.participation.dropout_of(cycle, device)
        stage = dropout.stage if dropout else ""
        if stage == "before":
            return False
        link = self._link("down", device)
        plan = service.plan(version, {device: self.known[device]}, {device: link})
        data = plan.payloads[device]
        delivery = yield from self._carry(
            device,
            data,
            "down",
            plan.ranks[device],
            link,
            dropout.share if stage == "download" and dropout else 1.0,
        )
        if not delivery.is_delivered or stage == "download":
            return False
        content = RecordDict(
            {
                "work": ConfigRecord(
                    {
                        "ranks": bytes(plan.work[device].astype(np.uint8)),
                        "importance": plan.importance,
                        "round": cycle,
                    }
                )
            }
        )
        if data:
            payload = damaged(data) if delivery.has_bit_error else data
            content["update"] = ConfigRecord({"payload": payload})
        reply = self.roster.ask("train", {device: content}, version).get(device)
        if reply is None or "work" not in reply.content:
            self._is_answered[device] = False
            return False
        self.known[device] = report = report_of(reply)
        if data:
            service.down.confirm(device, report, data)
            self._down.is_delivered[device] = report.is_installed
        work = reply.content.config_records["work"]
        compute_s, compute_j = number_of(work, "compute_s"), number_of(work, "compute_j")
        yield self.cell.env.timeout(compute_s)
        self.log.append((self.cell.now_s, device, "trained"))
        self._compute[device] += compute_s, compute_j
        if stage == "training":
            return False
        worth = work.get("worth")
        worth = worth if isinstance(worth, bytes) else b""
        config = self.cell.cell.config
        self._overhead[device] += config.report_bits + config.ack_bits * bool(data) + 8 * len(worth)
        link = self._link("up", device)
        request = Request(report, worth, link, 0.0)
        ranks = service.grant(version, {device: request}, asked=[device]).get(device)
        if ranks is None:
            return False
        grant = ConfigRecord({"ranks": ranks, "number": version + 1})
        reply = self.roster.ask("train.send", {device: RecordDict({"grant": grant})}, version).get(
            device
        )
        if reply is None or "update" not in reply.content:
            self._is_answered[device] = False
            return False
        sent = reply.content.config_records["update"].get("payload")
        sent = sent if isinstance(sent, bytes) else b""
        granted = np.frombuffer(ranks, np.uint8).astype(np.int64)
        delivery = yield from self._carry(
            device,
            sent,
            "up",
            granted,
            link,
            dropout.share if stage == "upload" and dropout else 1.0,
        )
        if not delivery.is_delivered or stage == "upload":
            return False
        return self._arrived(
            device, damaged(sent) if delivery.has_bit_error else sent, granted, version
        )

    def _carry(
        self,
        device: int,
        data: bytes,
        direction: Direction,
        ranks: NDArray[np.int64],
        link: LinkReport,
        share: float,
    ) -> Generator[simpy.Event, Any, Delivery]:
        """Send a payload, or the ``share`` of it that is through before the device drops out."""
        bits = 8 * len(data)
        books = self._down if direction == "down" else self._up
        delivery = yield from self.cell.transfer(device, int(share * bits), direction)
        if share < 1.0:
            delivery = replace(delivery, bits=bits, delivered_bits=0, is_delivered=False)
        # A merge may have come in between: the books are those of now.
        books = self._down if direction == "down" else self._up
        books.add(delivery, ranks, link.planned_rate_bps * self.cell.cell.config.deadline_s)
        self.log.append((self.cell.now_s, device, "download" if direction == "down" else "upload"))
        return delivery

    def _arrived(self, device: int, data: bytes, granted: NDArray[np.int64], version: int) -> bool:
        service = self.service
        update = service.inspector.open(device, data, granted=granted, number=version + 1)
        if update is None:
            return False
        self._fruitless = 0
        self._up.is_delivered[device] = True
        buffer = self._buffer
        buffer.devices.append(device)
        buffer.updates.append(update)
        buffer.versions.append(version)
        if len(buffer.updates) >= service.config.buffer:
            self._merge()
        return True

    def _merge(self) -> None:
        service, buffer = self.service, self._buffer
        age = self.version - np.array(buffer.versions)
        discounts = (1.0 + age) ** -service.config.staleness_exponent
        service.merge(buffer.devices, buffer.updates, list(discounts))
        service.refine(self.version)
        self.log.append((self.cell.now_s, -1, "merge"))
        logger.info("merge %d: updates %s merges old", self.version + 1, age.tolist())
        self.on_round(self._result())
        self.version += 1
        self._buffer = _Buffer()
        self._reset()
        if self.version == service.num_rounds:
            self._done.succeed()

    def _link(self, direction: Direction, device: int) -> LinkReport:
        """As reported, with the part of a shared band that falls to one of those at work."""
        links = self.cell.reported_links(direction)
        rate_bps = float(self.cell.cell.planned_rate_bps(links)[device])
        share = self._workers if self.service.is_shared_band else 1
        one = links[device]
        return LinkReport(one.snr_db, one.bandwidth_hz, rate_bps / share)

    def _result(self) -> RoundResult:
        round_s = self.cell.now_s - self._merged_at_s
        energy = self.cell.cell.config.energy
        active_s = self._down.delay_s + self._up.delay_s
        idle_j = [idle_energy_j(energy, max(round_s - a, 0.0)) for a in active_s]
        return RoundResult(
            round_index=self.version,
            links=replace(self.cell.true_links("down"), time_s=self._merged_at_s),
            requests=self._before,
            reports=[self.known[d] for d in range(self.service.num_devices)],
            down=self._down.transfers,
            up=self._up.transfers,
            overhead_bits=self._overhead,
            energy_j=self._down.energy_j + self._up.energy_j + self._compute[:, 1] + idle_j,
            compute_s=self._compute[:, 0],
            round_s=round_s,
            is_answered=self._is_answered,
            reward=np.zeros(self.service.num_devices),
        )
