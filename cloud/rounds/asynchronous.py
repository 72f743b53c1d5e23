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
from numpy.typing import NDArray

from airllm.protocol import DeviceReport, Download, Grant, Query, Reply, Request, TrainingOrder
from channel.delivery import Delivery, Direction
from channel.energy import idle_energy_j
from channel.open_cell import OpenCell
from channel.streams import rng_for
from cloud.clients.manager import ClientManager
from cloud.clients.participation import Dropout
from cloud.planning.downlink import Downlink
from cloud.planning.plan import LinkReport, UplinkRequest
from cloud.planning.uplink import Uplink
from cloud.rounds.air_interface import cut_short, received, share_on_air
from cloud.rounds.client_cycle import Buffer, ClientCycle
from cloud.rounds.record import RoundRecord, RoundResult

logger = logging.getLogger(__name__)

_PICK_STREAM = 92
_FRUITLESS = 100  # cycles of every device without a merge, after which nothing will come any more

Process = Generator[simpy.Event, Any, None]


class AsynchronousRounds:
    """A federation without synchronous rounds, from the deployment to the last merge."""

    def __init__(
        self,
        clients: ClientManager,
        downlink: Downlink,
        uplink: Uplink,
        cell: OpenCell,
        known: dict[int, DeviceReport],
        on_round: Callable[[RoundResult], None],
        *,
        state: Mapping[str, Any] | None = None,
        on_event: Callable[[float, int, str], None] = lambda time_s, device, event: None,
    ) -> None:
        """``state`` is what `state_dict` gave, to go on from; ``on_event`` is told of the time in
        s, the device and what happened: download, trained, upload, merge (device -1)."""
        self.clients, self.downlink, self.uplink, self.cell = clients, downlink, uplink, cell
        self.known, self.on_round, self.on_event = known, on_round, on_event
        devices = uplink.num_devices
        workers = min(uplink.config.participants or devices, devices)
        self._results: list[RoundResult] = []
        if state:
            cell.load_state_dict(state["cell"])
            self.version, self._picks, self._fruitless = state["counts"]
            self._buffer = Buffer.of_state(state["buffer"])
            self._running = [ClientCycle.of_state(c) if c else None for c in state["running"]]
            self._idle, self._cycles = list(state["idle"]), list(state["cycles"])
            self._record = RoundRecord.of_state(state["record"])
            self._unanswered: set[int] = set(state["unanswered"])
            return
        self.version = self._picks = self._fruitless = 0
        """merges, draws of devices, tries without a merge so far"""
        self._buffer = Buffer()
        self._running = [None] * workers
        self._idle, self._cycles = list(range(devices)), [0] * devices
        self._record = self._nothing_yet()
        self._unanswered = set()
        """devices whose last answer did not come"""

    def run(self) -> None:
        """Until the last merge; results go to ``on_round`` once nothing else happens at the moment
        of virtual time that they are of.

        Raises ValueError where no update comes in any more.
        """
        env = self.cell.env
        starts = [
            (cycle.wait if cycle else 0, self._work(worker))
            for worker, cycle in enumerate(self._running)
        ] + [(band.wait, band.restart()) for band in self.cell.bands.values()]
        # What was waited for is waited for again, in the order in which it was.
        for _, start in sorted(starts, key=lambda pair: pair[0]):
            env.process(start)
        while self.version < self.uplink.num_rounds:
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
            "running": [asdict(cycle) if cycle else None for cycle in self._running],
            "idle": list(self._idle),
            "cycles": list(self._cycles),
            "record": asdict(self._record),
            "unanswered": sorted(self._unanswered),
        }

    def _hand_over(self) -> None:
        results, self._results = self._results, []
        for result in results:
            self.on_round(result)

    def _nothing_yet(self) -> RoundRecord:
        reports = [self.known[d] for d in range(self.uplink.num_devices)]
        return RoundRecord.begin(self.cell.now_s, reports, len(self.uplink.base.specs))

    def _work(self, worker: int) -> Process:
        """One device after another, drawn from those that do nothing."""
        while self.version < self.uplink.num_rounds:
            cycle = self._running[worker] = self._running[worker] or self._set_out()
            if cycle.stage == "rest":
                yield self._until(cycle)
                self._running[worker] = None
                continue
            is_sent = yield from self._cycle(cycle)
            self._cycles[cycle.device] += 1
            self._idle = sorted([*self._idle, cycle.device])
            self._running[worker] = None if is_sent else self._rest(cycle)

    def _set_out(self) -> ClientCycle:
        rng = rng_for(self.uplink.participation.seed, _PICK_STREAM, self._picks)
        self._picks += 1
        return ClientCycle(self._idle.pop(int(rng.integers(len(self._idle)))), self.version)

    def _rest(self, cycle: ClientCycle) -> ClientCycle:
        self._fruitless += 1
        if self._fruitless > _FRUITLESS * self.uplink.num_devices:
            raise ValueError(
                f"no update has come in over {self._fruitless} tries of the devices; their "
                f"links carry too little (channel.*), or federated.dropout is too high"
            )
        until_s = self.cell.now_s + self.cell.cell.config.round_period_s
        return ClientCycle(cycle.device, cycle.version, "rest", until_s=until_s)

    def _until(self, cycle: ClientCycle) -> simpy.Event:
        wait = self.cell.env.until(cycle.until_s)
        cycle.wait = self.cell.env.num_waits
        return wait

    def _cycle(self, cycle: ClientCycle) -> Generator[simpy.Event, Any, bool]:
        """Download, train, upload, from the cycle's stage on; whether an update came up."""
        dropout = self.uplink.participation.dropout_of(self._cycles[cycle.device], cycle.device)
        stage = dropout.stage if dropout else ""
        if cycle.stage == "begin":
            if stage == "before" or not self._is_settled(cycle):
                return False
            self._begin_download(cycle, dropout)
        if cycle.stage == "download":
            delivery = yield from self._carry(cycle, dropout)
            if not delivery.is_delivered or stage == "download":
                return False
            if not self._begin_training(cycle, delivery):
                return False
        if cycle.stage == "train":
            yield self._until(cycle)
            self.on_event(self.cell.now_s, cycle.device, "trained")
            self._record.compute_s[cycle.device] += cycle.compute_s
            self._record.compute_j[cycle.device] += cycle.compute_j
            if stage == "training" or not self._begin_upload(cycle, dropout):
                return False
        delivery = yield from self._carry(cycle, dropout)
        if not delivery.is_delivered or stage == "upload":
            return False
        return self._arrived(cycle, received(cycle.data, delivery))

    def _is_settled(self, cycle: ClientCycle) -> bool:
        """Whether it is certain what the device holds: after a lost answer it is asked again."""
        device = cycle.device
        if device not in self._unanswered:
            return True
        reply = self._ask(cycle, Query())
        if reply is None:
            return False
        self._unanswered.remove(device)
        self.known[device] = reply.report
        self._record.overhead_bits[device] += self.cell.cell.config.report_bits
        return True

    def _ask(
        self,
        cycle: ClientCycle,
        request: Request,
        is_whole: Callable[[Reply], bool] = lambda reply: True,
    ) -> Reply | None:
        """The answer, where it comes and has what was asked for."""
        device = cycle.device
        reply = self.clients.ask({device: request}, cycle.version).get(device)
        if reply is not None and is_whole(reply):
            return reply
        self._record.is_answered[device] = False
        self._unanswered.add(device)
        return None

    def _begin_download(self, cycle: ClientCycle, dropout: Dropout | None) -> None:
        device = cycle.device
        link = self._link("down", device)
        # The version may be that of an earlier cycle; which update a device holds must be certain.
        number = self._cycles[device] + 1
        plan = self.downlink.plan(
            cycle.version, {device: self.known[device]}, {device: link}, number=number
        )
        order = self.uplink.orders(self._cycles[device], plan, [device])[device]
        cycle.training_ranks, cycle.importance = order.ranks, order.importance
        self._begin(cycle, "download", plan.payloads[device], plan.ranks[device], link, dropout)

    def _begin_training(self, cycle: ClientCycle, delivery: Delivery) -> bool:
        """Whether the device answers."""
        device = cycle.device
        order = TrainingOrder(cycle.training_ranks, cycle.importance, self._cycles[device])
        payload = received(cycle.data, delivery) if cycle.data else b""
        reply = self._ask(cycle, Download(payload, order), lambda r: r.training is not None)
        if reply is None or reply.training is None:
            self._record.down.unconfirmed(delivery)
            return False
        self.known[device] = reply.report
        if cycle.data:
            self.downlink.confirm(reply.report, cycle.data)
            self._record.down.is_delivered[device] = reply.report.is_installed
        training = reply.training
        cycle.compute_s, cycle.compute_j = training.compute_s, training.compute_j
        cycle.utility, cycle.has_update = training.utility, bool(cycle.data)
        cycle.stage, cycle.transfer, cycle.data = "train", None, b""
        cycle.until_s = self.cell.now_s + cycle.compute_s
        return True

    def _begin_upload(self, cycle: ClientCycle, dropout: Dropout | None) -> bool:
        """Whether the device may send, and does."""
        device, config = cycle.device, self.cell.cell.config
        ack_bits = config.ack_bits * cycle.has_update
        self._record.overhead_bits[device] += config.report_bits + ack_bits + 8 * len(cycle.utility)
        link = self._link("up", device)
        request = UplinkRequest(self.known[device], cycle.utility, link, 0.0)
        grants = self.uplink.grant(cycle.version, {device: request}, asked=[device])
        if device not in grants:
            return False
        grant = Grant(grants[device], cycle.version + 1)
        reply = self._ask(cycle, grant, lambda r: r.payload is not None)
        if reply is None or reply.payload is None:
            return False
        self._begin(cycle, "upload", reply.payload, grants[device], link, dropout)
        return True

    def _begin(
        self,
        cycle: ClientCycle,
        stage: str,
        data: bytes,
        ranks: NDArray[np.int64],
        link: LinkReport,
        dropout: Dropout | None,
    ) -> None:
        """Put a payload on its way, or the share of it that is through before the device drops
        out."""
        direction: Direction = "down" if stage == "download" else "up"
        cycle.stage, cycle.data, cycle.ranks = stage, data, ranks
        cycle.planned_bits = link.planned_rate_bps * self.cell.cell.config.deadline_s
        bits = int(share_on_air(stage, dropout) * 8 * len(data))
        cycle.transfer = self.cell.begin(cycle.device, bits, direction)

    def _carry(
        self, cycle: ClientCycle, dropout: Dropout | None
    ) -> Generator[simpy.Event, Any, Delivery]:
        assert cycle.transfer is not None
        cycle.wait = self.cell.env.num_waits + 1  # the next one to be begun
        delivery = yield from self.cell.carry(cycle.transfer)
        if share_on_air(cycle.stage, dropout) < 1.0:
            delivery = cut_short(delivery, 8 * len(cycle.data))
        transfers = self._record.down if cycle.stage == "download" else self._record.up
        transfers.plan(cycle.device, cycle.ranks, cycle.planned_bits)
        transfers.add(delivery)
        self.on_event(self.cell.now_s, cycle.device, cycle.stage)
        return delivery

    def _arrived(self, cycle: ClientCycle, data: bytes) -> bool:
        """Take an update into the buffer, and merge when it is full; whether it was fit for it."""
        uplink, buffer = self.uplink, self._buffer
        update = uplink.inspector.open(
            cycle.device, data, granted=cycle.ranks, number=cycle.version + 1
        )
        if update is None:
            return False
        self._fruitless = 0
        self._record.up.is_delivered[cycle.device] = True
        buffer.devices.append(cycle.device)
        buffer.updates.append(update)
        buffer.versions.append(cycle.version)
        if len(buffer.updates) >= uplink.config.buffer:
            self._merge()
        return True

    def _merge(self) -> None:
        uplink, buffer = self.uplink, self._buffer
        age = self.version - np.array(buffer.versions)
        discounts = (1.0 + age) ** -uplink.config.staleness_exponent
        uplink.merger.merge(buffer.devices, buffer.updates, list(discounts))
        uplink.refine(self.version)
        self.on_event(self.cell.now_s, -1, "merge")
        logger.info("merge %d: updates %s merges old", self.version + 1, age.tolist())
        self._results.append(self._result())
        self.version += 1
        self._buffer, self._record = Buffer(), self._nothing_yet()

    def _link(self, direction: Direction, device: int) -> LinkReport:
        """As reported, with the part of a shared band that falls to one of those at work."""
        links = self.cell.reported_links(direction)
        rate_bps = float(self.cell.cell.planned_rate_bps(links)[device])
        share = len(self._running) if self.uplink.is_shared_band else 1
        one = links[device]
        return LinkReport(one.snr_db, one.bandwidth_hz, rate_bps / share)

    def _result(self) -> RoundResult:
        record = self._record
        down, up = record.down, record.up
        round_s = self.cell.now_s - record.begin_s
        energy = self.cell.cell.config.energy
        active_s = down.delay_s + up.delay_s
        idle_j = [idle_energy_j(energy, max(round_s - a, 0.0)) for a in active_s]
        return RoundResult(
            round_index=self.version,
            links=replace(self.cell.true_links("down"), time_s=record.begin_s),
            record=record,
            after=[self.known[d] for d in range(self.uplink.num_devices)],
            energy_j=down.energy_j + up.energy_j + record.compute_j + idle_j,
            round_s=round_s,
            reward=np.zeros(self.uplink.num_devices),
        )
