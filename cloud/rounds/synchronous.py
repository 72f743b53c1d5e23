"""One synchronous round: questions, updates down, grants, updates up, and what came of it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from airllm.protocol import DeviceReport, Download, Grant, Query, Reply, Request, TrainingOrder
from channel.energy import idle_energy_j
from channel.link import Links
from cloud.clients.manager import ClientManager
from cloud.planning.downlink import Downlink
from cloud.planning.plan import LinkReport, Outcome, Plan, UplinkRequest, Upload
from cloud.planning.uplink import Uplink
from cloud.rounds.air_interface import AirInterface
from cloud.rounds.record import RoundRecord, RoundResult

logger = logging.getLogger(__name__)


class Round:
    """One round under way."""

    def __init__(
        self,
        air: AirInterface,
        clients: ClientManager,
        downlink: Downlink,
        uplink: Uplink | None,
        round_index: int,
        known: dict[int, DeviceReport],
    ) -> None:
        """``uplink`` is None in remote mode. ``known`` [by device] are the newest reports; they are
        kept up to date in place."""
        self.air, self.clients, self.downlink, self.uplink = air, clients, downlink, uplink
        self.round_index, self.known = round_index, known
        devices = range(downlink.num_devices)
        self.asked = uplink.participation.chosen(round_index) if uplink else list(devices)
        self.record = RoundRecord.begin(
            air.start_s, [known[d] for d in devices], len(downlink.base.specs)
        )

    def run(self) -> RoundResult:
        """From the question to what came of it."""
        air, devices = self.air, range(self.downlink.num_devices)
        links = self._query()
        # Who does not answer has no link that a plan could count on, and is sent nothing.
        silent = LinkReport(-np.inf, air.cell.config.bandwidth_hz, 0.0)
        plan = self.downlink.plan(
            self.round_index,
            {d: self.known[d] for d in self.asked},
            {d: links.get(d, silent) for d in self.asked},
        )
        true_down = air.cell.true_links()
        payloads = {d: plan.payloads[d] for d in links if plan.payloads[d]}
        for d in devices:
            self.record.down.plan(d, plan.ranks[d], self._planned_bits(links.get(d, silent)))
        replies = self._download(payloads, self._orders(plan, links))
        true_up = air.cell.true_links("up")
        uploads = self._upload(replies, true_up)
        rewards = self.downlink.conclude(
            self.round_index,
            [
                Outcome(
                    self.known[d] if d in replies and d in payloads else None,
                    air.downloads[d].bits,
                    float(true_down.rate_bps[d]),
                )
                for d in devices
            ],
        )
        if self.uplink is not None:
            rewards = rewards + self.uplink.conclude(self.round_index, uploads)
            self.record.up.is_delivered[list(self.uplink.merged)] = True
        return self._result(true_down, rewards)

    def _query(self) -> dict[int, LinkReport]:
        """The links of the devices that are there, as they are reported."""
        asked = [d for d in self.asked if self.air.stage(d) != "before"]
        heard = self._ask({d: Query() for d in asked})
        self.record.overhead_bits[list(heard)] += self.air.cell.config.report_bits
        return self.air.reported_links("down", heard)

    def _orders(self, plan: Plan, present: Collection[int]) -> dict[int, TrainingOrder]:
        """What the devices that are there are to train."""
        if self.uplink is None:
            return {}
        orders = self.uplink.orders(self.round_index, plan, self.asked)
        return {d: order for d, order in orders.items() if d in present}

    def _download(
        self, payloads: Mapping[int, bytes], orders: Mapping[int, TrainingOrder]
    ) -> dict[int, Reply]:
        """Send updates and orders to train; the answers of those that they reached."""
        air, record = self.air, self.record
        arrived = air.carry_down(payloads)
        waiting = [d for d in orders if d not in payloads and air.stage(d) != "download"]
        replies = self._ask(
            {d: Download(arrived.get(d, b""), orders.get(d)) for d in sorted([*arrived, *waiting])}
        )
        for d, reply in replies.items():
            if d in payloads:
                record.overhead_bits[d] += air.cell.config.ack_bits
                record.down.is_delivered[d] = reply.report.is_installed
            if reply.training is not None:
                air.computed(d, reply.training.compute_s)
                record.compute_s[d] = reply.training.compute_s
                record.compute_j[d] = reply.training.compute_j
        return replies

    def _upload(self, replies: Mapping[int, Reply], true_links: Links) -> dict[int, Upload]:
        """Grant devices what they may send of their own updates; what came up."""
        air, record, uplink = self.air, self.record, self.uplink
        trained = {d: reply.training for d, reply in replies.items() if reply.training is not None}
        if uplink is None or not trained:
            return {}
        links = air.reported_links("up", trained)
        requests = {
            d: UplinkRequest(self.known[d], training.utility, links[d], air.ready_s[d])
            for d, training in trained.items()
        }
        grants = uplink.grant(self.round_index, requests)
        nothing = np.zeros(len(uplink.base.specs), dtype=np.int64)
        for d, request in requests.items():
            record.overhead_bits[d] += 8 * len(request.utility)
            record.up.plan(d, grants.get(d, nothing), self._planned_bits(request.link))
        granted = self._ask({d: Grant(r, self.round_index + 1) for d, r in grants.items()})
        payloads = {d: reply.payload for d, reply in granted.items() if reply.payload is not None}
        arrived = air.carry_up(payloads, uplink.symbols(grants))
        for delivery in air.uploads.values():
            record.up.add(delivery)
        snr_db = true_links.snr_db if air.superposed_snr_db is None else air.superposed_snr_db
        return {
            d: Upload(
                arrived.get(d), delivery.bits, float(true_links.rate_bps[d]), float(snr_db[d])
            )
            for d, delivery in air.uploads.items()
        }

    def _ask(self, requests: Mapping[int, Request]) -> dict[int, Reply]:
        """Answers by device, of which those are known that drop out only later."""
        answers = self.clients.ask(requests, self.round_index)
        self.record.is_answered[[d for d in requests if d not in answers]] = False
        for d in [d for d in answers if self.air.stage(d) == "training"]:
            if not isinstance(requests[d], Query):
                logger.info("device %d fell silent after its download", d)
                del answers[d]
        self.known |= {d: reply.report for d, reply in answers.items()}
        return answers

    def _planned_bits(self, link: LinkReport) -> float:
        """What a link as reported carries in its share of the deadline."""
        share = len(self.asked) if self.downlink.is_shared_band else 1
        return link.planned_rate_bps * (self.air.cell.config.deadline_s / share)

    def _result(self, true_links: Links, reward: NDArray[np.float64]) -> RoundResult:
        for d, delivery in self.air.downloads.items():
            self.record.down.add(delivery)
            if not self.record.is_answered[d]:
                self.record.down.unconfirmed(delivery)
        return RoundResult(
            round_index=self.round_index,
            links=true_links,
            record=self.record,
            after=[self.known[d] for d in range(self.downlink.num_devices)],
            energy_j=self._energy_j(),
            round_s=self.air.round_s(),
            reward=reward,
        )

    def _energy_j(self) -> NDArray[np.float64]:
        """[devices] drawn over the round."""
        air, record, config = self.air, self.record, self.air.cell.config
        period_s = config.round_period_s if self.uplink is None else air.round_s()
        energy_j = record.compute_j.copy()
        for d, down in air.downloads.items():
            if air.round_deadline_s is not None and record.compute_s[d] > 0:
                # Who is not ready by the deadline gives up there.
                left_s = max(air.round_deadline_s - down.delay_s, 0.0)
                energy_j[d] *= min(left_s / record.compute_s[d], 1.0)
            up = air.uploads.get(d)
            energy_j[d] += down.energy_j + (up.energy_j if up else 0.0)
            idle_s = period_s - down.delay_s - (up.air_s if up else 0.0)
            energy_j[d] += idle_energy_j(config.energy, max(idle_s, 0.0))
        return energy_j
