"""Asynchronous rounds (FedBuff, Nguyen et al. 2022): devices go on by themselves.

Each device downloads, trains and uploads again and again; whenever so many updates are in, they are
merged. What happens first is decided by SimPy alone: a device's computation takes the virtual time
that its operations do, however long the host took for them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import simpy
from flwr.app import ConfigRecord, Message, RecordDict
from numpy.typing import NDArray

from airllm.report import DeviceReport
from channel.delivery import Delivery, Direction
from channel.energy import idle_energy_j
from channel.open_cell import OpenCell
from channel.streams import rng_for
from cloud.clients.manager import Roster, report_of
from cloud.clients.participation import Dropout
from cloud.grids.air_grid import bytes_of, damaged, number_of
from cloud.planning.downlink import LinkReport, Request
from cloud.planning.uplink import FederatedService
from cloud.rounds.client_cycle import Buffer, SinceMerge, Trip
from cloud.rounds.synchronous import RoundResult

logger = logging.getLogger(__name__)

_PICK_STREAM = 92
_FRUITLESS = 100  # cycles of every device without a merge, after which nothing will come any more

Process = Generator[simpy.Event, Any, None]


class BufferedRun:
    """A federation without synchronous rounds, from the deployment to the last merge."""

    def __init__(
        self,
        roster: Roster,
        service: FederatedService,
        cell: OpenCell,
        known: dict[int, DeviceReport],
        on_round: Callable[[RoundResult], None],
        *,
        state: Mapping[str, Any] | None = None,
        on_event: Callable[[float, int, str], None] = lambda time_s, device, event: None,
    ) -> None:
        """``state`` is what `state_dict` gave, to go on from; ``on_event`` is told of the time in
        s, the device and what happened: download, trained, upload, merge (device -1)."""
        self.roster, self.service, self.cell = roster, service, cell
        self.known, self.on_round, self.on_event = known, on_round, on_event
        devices = service.num_devices
        workers = min(service.config.participants or devices, devices)
        self._results: list[RoundResult] = []
        if state:
            cell.load_state_dict(state["cell"])
            self.version, self._picks, self._fruitless = state["counts"]
            self._buffer = Buffer.of_state(state["buffer"])
            self._trips = [Trip.of_state(trip) if trip else None for trip in state["trips"]]
            self._idle, self._cycles = list(state["idle"]), list(state["cycles"])
            self._since = SinceMerge.of_state(state["since"])
            self._unanswered: set[int] = set(state["unanswered"])
            return
        self.version = self._picks = self._fruitless = 0
        """merges, draws of devices, tries without a merge so far"""
        self._buffer = Buffer()
        self._trips = [None] * workers
        self._idle, self._cycles = list(range(devices)), [0] * devices
        self._since = self._nothing_yet()
        self._unanswered = set()
        """devices whose last answer did not come"""

    def run(self) -> None:
        """Until the last merge; results go to ``on_round`` once nothing else happens at the moment
        of virtual time that they are of.

        Raises ValueError where no update comes in any more.
        """
        env = self.cell.env
        starts = [
            (trip.wait if trip else 0, self._work(worker))
            for worker, trip in enumerate(self._trips)
        ] + [(band.wait, band.restart()) for band in self.cell.bands.values()]
        # What was waited for is waited for again, in the order in which it was.
        for _, start in sorted(starts, key=lambda pair: pair[0]):
            env.process(start)
        while self.version < self.service.num_rounds:
            env.step()
            if self._results and env.peek() > env.now:
                self._hand_over()
        self._hand_over()

    def state_dict(self) -> dict[str, Any]:
        """All that is under way, asked for in ``on_round``: everybody waits then."""
        return {
            "cell": self.cell.state_dict(),
            "counts": [self.version, self._picks, self._fruitless],
            "buffer": self._buffer.state_dict(),
            "trips": [asdict(trip) if trip else None for trip in self._trips],
            "idle": list(self._idle),
            "cycles": list(self._cycles),
            "since": asdict(self._since),
            "unanswered": sorted(self._unanswered),
        }

    def _hand_over(self) -> None:
        results, self._results = self._results, []
        for result in results:
            self.on_round(result)

    def _nothing_yet(self) -> SinceMerge:
        reports = [self.known[d] for d in range(self.service.num_devices)]
        return SinceMerge.begin(self.cell.now_s, reports, len(self.service.base.specs))

    def _work(self, worker: int) -> Process:
        """One device after another, drawn from those that do nothing."""
        while self.version < self.service.num_rounds:
            trip = self._trips[worker] = self._trips[worker] or self._set_out()
            if trip.stage == "rest":
                yield self._until(trip)
                self._trips[worker] = None
                continue
            is_sent = yield from self._cycle(trip)
            self._cycles[trip.device] += 1
            self._idle = sorted([*self._idle, trip.device])
            self._trips[worker] = None if is_sent else self._rest(trip)

    def _set_out(self) -> Trip:
        rng = rng_for(self.service.participation.seed, _PICK_STREAM, self._picks)
        self._picks += 1
        return Trip(self._idle.pop(int(rng.integers(len(self._idle)))), self.version)

    def _rest(self, trip: Trip) -> Trip:
        self._fruitless += 1
        if self._fruitless > _FRUITLESS * self.service.num_devices:
            raise ValueError(
                f"no update has come in over {self._fruitless} tries of the devices; their "
                f"links carry too little (channel.*), or federated.dropout is too high"
            )
        until_s = self.cell.now_s + self.cell.cell.config.round_period_s
        return Trip(trip.device, trip.version, "rest", until_s=until_s)

    def _until(self, trip: Trip) -> simpy.Event:
        wait = self.cell.env.until(trip.until_s)
        trip.wait = self.cell.env.num_waits
        return wait

    def _cycle(self, trip: Trip) -> Generator[simpy.Event, Any, bool]:
        """Download, train, upload, from the trip's stage on; whether an update came up."""
        dropout = self.service.participation.dropout_of(self._cycles[trip.device], trip.device)
        stage = dropout.stage if dropout else ""
        if trip.stage == "begin":
            if stage == "before" or not self._is_settled(trip):
                return False
            self._begin_download(trip, dropout)
        if trip.stage == "download":
            delivery = yield from self._carry(trip, dropout)
            if not delivery.is_delivered or stage == "download":
                return False
            if not self._begin_training(trip, delivery):
                return False
        if trip.stage == "train":
            yield self._until(trip)
            self.on_event(self.cell.now_s, trip.device, "trained")
            self._since.compute[trip.device] += trip.compute
            if stage == "training" or not self._begin_upload(trip, dropout):
                return False
        delivery = yield from self._carry(trip, dropout)
        if not delivery.is_delivered or stage == "upload":
            return False
        return self._arrived(trip, damaged(trip.data) if delivery.has_bit_error else trip.data)

    def _is_settled(self, trip: Trip) -> bool:
        """Whether it is certain what the device holds: after a lost answer it is asked again."""
        device = trip.device
        if device not in self._unanswered:
            return True
        reply = self._ask("query", trip, RecordDict(), "report")
        if reply is None:
            return False
        self._unanswered.remove(device)
        self.known[device] = report_of(reply)
        self._since.overhead_bits[device] += self.cell.cell.config.report_bits
        return True

    def _ask(
        self, message_type: str, trip: Trip, content: RecordDict, wanted: str
    ) -> Message | None:
        """The answer, where it comes and has the record that is wanted."""
        device = trip.device
        reply = self.roster.ask(message_type, {device: content}, trip.version).get(device)
        if reply is not None and wanted in reply.content:
            return reply
        self._since.is_answered[device] = False
        self._unanswered.add(device)
        return None

    def _begin_download(self, trip: Trip, dropout: Dropout | None) -> None:
        device = trip.device
        link = self._link("down", device)
        # The version may be that of an earlier trip; which update a device holds must be certain.
        number = self._cycles[device] + 1
        plan = self.service.plan(
            trip.version, {device: self.known[device]}, {device: link}, number=number
        )
        trip.work = bytes(plan.work[device].astype(np.uint8))
        trip.importance = plan.importance
        self._begin(trip, "download", plan.payloads[device], plan.ranks[device], link, dropout)

    def _begin_training(self, trip: Trip, delivery: Delivery) -> bool:
        """Whether the device answers."""
        device, service = trip.device, self.service
        cycle = self._cycles[device]
        work = ConfigRecord({"ranks": trip.work, "importance": trip.importance, "round": cycle})
        content = RecordDict({"work": work})
        if trip.data:
            payload = damaged(trip.data) if delivery.has_bit_error else trip.data
            content["update"] = ConfigRecord({"payload": payload})
        reply = self._ask("train", trip, content, "work")
        if reply is None:
            # As in any round: what nobody confirms has not arrived.
            self._since.down.delivered_bits[device] -= delivery.delivered_bits
            return False
        self.known[device] = report = report_of(reply)
        if trip.data:
            service.down.confirm(device, report, trip.data)
            self._since.down.is_delivered[device] = report.is_installed
        done = reply.content.config_records["work"]
        trip.compute = number_of(done, "compute_s"), number_of(done, "compute_j")
        trip.worth = bytes_of(done, "worth")
        trip.has_update = bool(trip.data)
        trip.stage, trip.transfer, trip.data = "train", None, b""
        trip.until_s = self.cell.now_s + trip.compute[0]
        return True

    def _begin_upload(self, trip: Trip, dropout: Dropout | None) -> bool:
        """Whether the device may send, and does."""
        device, config = trip.device, self.cell.cell.config
        ack_bits = config.ack_bits * trip.has_update
        self._since.overhead_bits[device] += config.report_bits + ack_bits + 8 * len(trip.worth)
        link = self._link("up", device)
        request = Request(self.known[device], trip.worth, link, 0.0)
        grants = self.service.grant(trip.version, {device: request}, asked=[device])
        if device not in grants:
            return False
        grant = ConfigRecord({"ranks": grants[device], "number": trip.version + 1})
        reply = self._ask("train.send", trip, RecordDict({"grant": grant}), "update")
        if reply is None:
            return False
        sent = bytes_of(reply.content.config_records["update"], "payload")
        granted = np.frombuffer(grants[device], np.uint8).astype(np.int64)
        self._begin(trip, "upload", sent, granted, link, dropout)
        return True

    def _begin(
        self,
        trip: Trip,
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

    def _carry(self, trip: Trip, dropout: Dropout | None) -> Generator[simpy.Event, Any, Delivery]:
        assert trip.transfer is not None
        trip.wait = self.cell.env.num_waits + 1  # the next one to be begun
        delivery = yield from self.cell.carry(trip.transfer)
        if _share(trip.stage, dropout) < 1.0:
            bits = 8 * len(trip.data)
            delivery = replace(delivery, bits=bits, delivered_bits=0, is_delivered=False)
        books = self._since.down if trip.stage == "download" else self._since.up
        books.add(delivery, trip.ranks, trip.planned_bits)
        self.on_event(self.cell.now_s, trip.device, trip.stage)
        return delivery

    def _arrived(self, trip: Trip, data: bytes) -> bool:
        """Take an update into the buffer, and merge when it is full; whether it was fit for it."""
        service, buffer = self.service, self._buffer
        update = service.inspector.open(
            trip.device, data, granted=trip.ranks, number=trip.version + 1
        )
        if update is None:
            return False
        self._fruitless = 0
        self._since.up.is_delivered[trip.device] = True
        buffer.devices.append(trip.device)
        buffer.updates.append(update)
        buffer.versions.append(trip.version)
        if len(buffer.updates) >= service.config.buffer:
            self._merge()
        return True

    def _merge(self) -> None:
        service, buffer = self.service, self._buffer
        age = self.version - np.array(buffer.versions)
        discounts = (1.0 + age) ** -service.config.staleness_exponent
        service.merge(buffer.devices, buffer.updates, list(discounts))
        service.refine(self.version)
        self.on_event(self.cell.now_s, -1, "merge")
        logger.info("merge %d: updates %s merges old", self.version + 1, age.tolist())
        self._results.append(self._result())
        self.version += 1
        self._buffer, self._since = Buffer(), self._nothing_yet()

    def _link(self, direction: Direction, device: int) -> LinkReport:
        """As reported, with the part of a shared band that falls to one of those at work."""
        links = self.cell.reported_links(direction)
        rate_bps = float(self.cell.cell.planned_rate_bps(links)[device])
        share = len(self._trips) if self.service.is_shared_band else 1
        one = links[device]
        return LinkReport(one.snr_db, one.bandwidth_hz, rate_bps / share)

    def _result(self) -> RoundResult:
        since = self._since
        round_s = self.cell.now_s - since.merged_at_s
        energy = self.cell.cell.config.energy
        active_s = since.down.delay_s + since.up.delay_s
        idle_j = [idle_energy_j(energy, max(round_s - a, 0.0)) for a in active_s]
        return RoundResult(
            round_index=self.version,
            links=replace(self.cell.true_links("down"), time_s=since.merged_at_s),
            requests=since.before,
            reports=[self.known[d] for d in range(self.service.num_devices)],
            down=since.down,
            up=since.up,
            overhead_bits=since.overhead_bits,
            energy_j=since.down.energy_j + since.up.energy_j + since.compute[:, 1] + idle_j,
            compute_s=since.compute[:, 0],
            round_s=round_s,
            is_answered=since.is_answered,
            reward=np.zeros(self.service.num_devices),
        )


def _share(stage: str, dropout: Dropout | None) -> float:
    """Of a payload, before the device drops out in this stage."""
    return dropout.share if dropout and dropout.stage == stage else 1.0
