"""Asynchronous rounds (FedBuff, Nguyen et al. 2022): devices go on by themselves.

Each device downloads, trains and uploads again and again; whenever so many updates are in, they are
merged. What happens first is decided by SimPy alone: a device's computation takes the virtual time
that its operations do, however long the host took for them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict, dataclass, field, replace
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
from channel.open_cell import OpenCell, Transfer
from cloud.air_grid import damaged
from cloud.federated import FederatedService
from cloud.participation import Dropout
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

    def state_dict(self) -> dict[str, Any]:
        updates = [[list(update.down), list(update.up)] for update in self.updates]
        return {"devices": self.devices, "updates": updates, "versions": self.versions}

    @staticmethod
    def of_state(state: Mapping[str, Any]) -> _Buffer:
        updates = [Adapter(tuple(down), tuple(up)) for down, up in state["updates"]]
        return _Buffer(list(state["devices"]), updates, list(state["versions"]))


@dataclass(slots=True)
class _Trip:
    """A device between setting out and having sent: all that going on with it takes."""

    device: int
    version: int
    """merges before it set out"""
    stage: str = "begin"
    """begin, download, train, upload, sent; rest where nothing was sent"""
    wait: int = 0
    """number of the wait that it is in"""
    transfer: Transfer | None = None
    """under way, or the last one"""
    data: bytes = b""
    """that is carried, whole"""
    ranks: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """[projections] of the data"""
    planned_bits: float = 0.0
    work: bytes = b""
    """ranks to train"""
    importance: str = ""
    until_s: float = 0.0
    """end of training or rest"""
    compute: tuple[float, float] = (0.0, 0.0)
    """of training, in s and J"""
    worth: bytes = b""

    @staticmethod
    def of_state(state: Mapping[str, Any]) -> _Trip:
        trip = _Trip(**state)
        trip.transfer = Transfer(**state["transfer"]) if state["transfer"] else None
        trip.compute = tuple(state["compute"])
        return trip


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
        self._trips: list[_Trip | None] = [None] * self._workers
        self._idle = list(range(devices))
        self._picks = self._fruitless = 0
        self._cycles = [0] * devices
        self._done = cell.env.event()
        self._reset()

    def run(self) -> None:
        """Until the last merge; results go to ``on_round`` with each one.

        Raises ValueError where no update comes in any more.
        """
        # Waits are begun in their order, and nobody acts before all of them are; who has just sent,
        # and merged, is the first to act, and so the last here.
        starts = [
            (trip.wait if trip and trip.stage != "sent" else np.inf, self._work(worker))
            for worker, trip in enumerate(self._trips)
        ] + [(band.wait, band.restart()) for band in self.cell.bands.values()]
        for _, start in sorted(starts, key=lambda pair: pair[0]):
            self.cell.env.process(start)
        self.cell.env.run(until=self._done)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing else happens at this very moment of virtual time: what does has begun in
        part, and could not be begun again in its order."""
        return bool(self.cell.env.peek() > self.cell.env.now)

    def state_dict(self) -> dict[str, Any]:
        """All that is under way, in ``on_round``; asked for where `is_quiet`."""
        return {
            "cell": self.cell.state_dict(),
            "trips": [asdict(trip) if trip else None for trip in self._trips],
            "buffer": self._buffer.state_dict(),
            "version": self.version,
            "idle": self._idle,
            "counts": [self._picks, self._fruitless, *self._cycles],
            "down": asdict(self._down),
            "up": asdict(self._up),
            "overhead": self._overhead,
            "compute": self._compute,
            "is_answered": self._is_answered,
            "before": [report.to_metrics() for report in self._before],
            "merged_at_s": self._merged_at_s,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, with `run`."""
        self.cell.load_state_dict(state["cell"])
        self._done = self.cell.env.event()
        self._trips = [_Trip.of_state(trip) if trip else None for trip in state["trips"]]
        self._buffer, self.version = _Buffer.of_state(state["buffer"]), state["version"]
        self._idle = list(state["idle"])
        self._picks, self._fruitless, *self._cycles = state["counts"]
        self._down, self._up = _Books(**state["down"]), _Books(**state["up"])
        self._overhead, self._compute = state["overhead"], state["compute"]
        self._is_answered, self._merged_at_s = state["is_answered"], state["merged_at_s"]
        self._before = [DeviceReport.from_metrics(metrics) for metrics in state["before"]]

    def _reset(self) -> None:
        shape = self.service.num_devices, len(self.service.base.specs)
        self._down, self._up = _Books.empty(*shape), _Books.empty(*shape)
        self._overhead = np.zeros(shape[0], dtype=np.int64)
        self._compute = np.zeros((shape[0], 2))
        self._is_answered = np.ones(shape[0], dtype=bool)
        self._before = [self.known[d] for d in range(shape[0])]
        self._merged_at_s = self.cell.now_s

    def _work(self, worker: int) -> Process:
        """One device after another, drawn from those that do nothing."""
        while True:
            trip = self._trips[worker] = self._trips[worker] or self._set_out()
            if trip.stage != "rest":
                sent = yield from self._cycle(trip)
                self._cycles[trip.device] += 1
                self._idle = sorted([*self._idle, trip.device])
                if not sent:
                    self._give_up(trip)
            if trip.stage == "rest":
                trip.wait = self.cell.env.num_waits + 1
                yield self.cell.env.until(trip.until_s)
            self._trips[worker] = None

    def _set_out(self) -> _Trip:
        rng = rng_for(self.service.participation.seed, _PICK_STREAM, self._picks)
        self._picks += 1
        return _Trip(self._idle.pop(int(rng.integers(len(self._idle)))), self.version)

    def _give_up(self, trip: _Trip) -> None:
        self._fruitless += 1
        if self._fruitless > _FRUITLESS * self.service.num_devices:
            raise ValueError(
                f"no update has come in over {self._fruitless} tries of the devices; their "
                f"links carry too little (channel.*), or federated.dropout is too high"
            )
        trip.stage = "rest"
        trip.until_s = self.cell.now_s + self.cell.cell.config.round_period_s

    def _cycle(self, trip: _Trip) -> Generator[simpy.Event, Any, bool]:
        """Download, train, upload, from the trip's stage on; whether an update came up."""
        dropout = self.service.participation.dropout_of(self._cycles[trip.device], trip.device)
        stage = dropout.stage if dropout else ""
        if trip.stage == "begin":
            if stage == "before":
                return False
            self._begin_download(trip, dropout)
        if trip.stage == "download":
            delivery = yield from self._carry(trip, dropout)
            if not delivery.is_delivered or stage == "download":
                return False
            if not self._begin_training(trip, delivery):
                return False
        if trip.stage == "train":
            trip.wait = self.cell.env.num_waits + 1
            yield self.cell.env.until(trip.until_s)
            self.log.append((self.cell.now_s, trip.device, "trained"))
            self._compute[trip.device] += trip.compute
            if stage == "training" or not self._begin_upload(trip, dropout):
                return False
        if trip.stage == "upload":
            delivery = yield from self._carry(trip, dropout)
            if not delivery.is_delivered or stage == "upload":
                return False
            trip.stage = "sent"
            return self._arrived(trip, damaged(trip.data) if delivery.has_bit_error else trip.data)
        return trip.stage == "sent"

    def _begin_download(self, trip: _Trip, dropout: Dropout | None) -> None:
        device = trip.device
        link = self._link("down", device)
        plan = self.service.plan(trip.version, {device: self.known[device]}, {device: link})
        trip.work = bytes(plan.work[device].astype(np.uint8))
        trip.importance = plan.importance
        self._begin(trip, "download", plan.payloads[device], plan.ranks[device], link, dropout)

    def _begin_training(self, trip: _Trip, delivery: Delivery) -> bool:
        """Whether the device answers."""
        device, service = trip.device, self.service
        cycle = self._cycles[device]
        work = ConfigRecord({"ranks": trip.work, "importance": trip.importance, "round": cycle})
        content = RecordDict({"work": work})
        if trip.data:
            payload = damaged(trip.data) if delivery.has_bit_error else trip.data
            content["update"] = ConfigRecord({"payload": payload})
        reply = self.roster.ask("train", {device: content}, trip.version).get(device)
        if reply is None or "work" not in reply.content:
            self._is_answered[device] = False
            return False
        self.known[device] = report = report_of(reply)
        if trip.data:
            service.down.confirm(device, report, trip.data)
            self._down.is_delivered[device] = report.is_installed
        done = reply.content.config_records["work"]
        trip.compute = number_of(done, "compute_s"), number_of(done, "compute_j")
        worth = done.get("worth")
        trip.worth = worth if isinstance(worth, bytes) else b""
        trip.stage, trip.until_s = "train", self.cell.now_s + trip.compute[0]
        return True

    def _begin_upload(self, trip: _Trip, dropout: Dropout | None) -> bool:
        """Whether the device may send, and does."""
        device, config = trip.device, self.cell.cell.config
        has_acknowledged = config.ack_bits * bool(trip.data)
        self._overhead[device] += config.report_bits + has_acknowledged + 8 * len(trip.worth)
        link = self._link("up", device)
        request = Request(self.known[device], trip.worth, link, 0.0)
        grants = self.service.grant(trip.version, {device: request}, asked=[device])
        if device not in grants:
            return False
        grant = ConfigRecord({"ranks": grants[device], "number": trip.version + 1})
        content = {device: RecordDict({"grant": grant})}
        reply = self.roster.ask("train.send", content, trip.version).get(device)
        if reply is None or "update" not in reply.content:
            self._is_answered[device] = False
            return False
        sent = reply.content.config_records["update"].get("payload")
        sent = sent if isinstance(sent, bytes) else b""
        granted = np.frombuffer(grants[device], np.uint8).astype(np.int64)
        self._begin(trip, "upload", sent, granted, link, dropout)
        return True

    def _begin(
        self,
        trip: _Trip,
        stage: str,
        data: bytes,
        ranks: NDArray[np.int64],
        link: LinkReport,
        dropout: Dropout | None,
    ) -> None:
        """Put a payload on its way, or the share of it that is through before the device drops
        out."""
        direction: Direction = "down" if stage == "download" else "up"
        trip.stage, trip.data, trip.ranks = stage, data, ranks
        trip.planned_bits = link.planned_rate_bps * self.cell.cell.config.deadline_s
        bits = int(_share(stage, dropout) * 8 * len(data))
        trip.transfer = self.cell.begin(trip.device, bits, direction)

    def _carry(self, trip: _Trip, dropout: Dropout | None) -> Generator[simpy.Event, Any, Delivery]:
        assert trip.transfer is not None
        trip.wait = self.cell.env.num_waits + 1
        delivery = yield from self.cell.carry(trip.transfer)
        if _share(trip.stage, dropout) < 1.0:
            bits = 8 * len(trip.data)
            delivery = replace(delivery, bits=bits, delivered_bits=0, is_delivered=False)
        books = self._down if trip.stage == "download" else self._up
        books.add(delivery, trip.ranks, trip.planned_bits)
        self.log.append((self.cell.now_s, trip.device, trip.stage))
        return delivery

    def _arrived(self, trip: _Trip, data: bytes) -> bool:
        """Take an update into the buffer, and merge when it is full; whether it was fit for it."""
        service, buffer = self.service, self._buffer
        update = service.inspector.open(
            trip.device, data, granted=trip.ranks, number=trip.version + 1
        )
        if update is None:
            return False
        self._fruitless = 0
        self._up.is_delivered[trip.device] = True
        buffer.devices.append(trip.device)
        buffer.updates.append(update)
        buffer.versions.append(trip.version)
        # Others may arrive at the very moment of the last merge.
        if len(buffer.updates) >= service.config.buffer and not self._done.triggered:
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
        result = self._result()
        self.version += 1
        self._buffer = _Buffer()
        self._reset()
        self.on_round(result)
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


def _share(stage: str, dropout: Dropout | None) -> float:
    """Of a payload, before the device drops out in this stage."""
    return dropout.share if dropout and dropout.stage == stage else 1.0
