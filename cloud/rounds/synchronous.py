"""One round over Flower's messages: questions, updates down, grants, updates up, and the books."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from airllm.lora.adapter import Adapter
from airllm.lora.evaluation import Head
from airllm.policies.knapsack import Ranks
from airllm.report import DeviceReport
from channel.delivery import Delivery
from channel.energy import idle_energy_j
from channel.link import Links
from cloud.clients.manager import Roster, report_of
from cloud.clients.participation import Dropout
from cloud.grids.air_grid import AirGrid, bytes_of, number_of
from cloud.planning.downlink import LinkReport, Outcome, Plan, Request


class Service(Protocol):
    """The cloud of either mode: `CloudService` or `FederatedService`."""

    head: Head | None
    num_devices: int
    num_rounds: int
    is_shared_band: bool
    is_federated: bool
    round_deadline_s: float | None
    """of virtual time, from a round's start until updates of devices are in; None: all are waited
    for"""
    air_threshold_db: float | None
    """of the SNR from which on updates are sent at once, as analog symbols; None: they are sent as
    bits"""
    merged: Collection[int]
    """devices whose own update the round before has merged"""

    def welcome(self, reports: Mapping[int, DeviceReport]) -> None:
        """Take note of the devices, before the first round."""
        ...

    def participants(self, round_index: int) -> list[int]:
        """The devices that are asked in a round."""
        ...

    def dropouts(self, round_index: int) -> Mapping[int, Dropout]:
        """Who falls silent in the middle of it."""
        ...

    def plan(
        self,
        round_index: int,
        reports: Mapping[int, DeviceReport],
        links: Mapping[int, LinkReport],
    ) -> Plan:
        """What goes down."""
        ...

    def grant(self, round_index: int, requests: Mapping[int, Request]) -> Mapping[int, bytes]:
        """What may come up: ranks, a byte for each projection."""
        ...

    def symbols(self, grants: Mapping[int, bytes]) -> Mapping[int, int]:
        """Real numbers that granted updates have: what is sent of them as analog symbols."""
        ...

    def conclude(self, round_index: int, outcomes: Sequence[Outcome]) -> NDArray[np.float64]:
        """Take in what came of it; rewards [devices]."""
        ...

    def final(self) -> Adapter:
        """The whole of what there was to send after the last round."""
        ...


@dataclass(frozen=True, slots=True)
class Transfers:
    """What one direction of a round was; arrays are [devices]."""

    ranks: Ranks
    """[devices, projections]"""
    planned_bits: NDArray[np.float64]
    """what the plan allows each device: planned rate times its share of the deadline"""
    payload_bits: NDArray[np.int64]
    sent_bits: NDArray[np.float64]
    delivered_bits: NDArray[np.int64]
    delay_s: NDArray[np.float64]
    is_delivered: NDArray[np.bool_]
    """arrived in time, intact, and in use; False too where nothing was sent"""


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What one round was, for the books; lists and arrays are [devices]."""

    round_index: int
    links: Links
    """as they truly were"""
    requests: list[DeviceReport]
    """what the devices reported before the update"""
    reports: list[DeviceReport]
    """their state after it"""
    down: Transfers
    up: Transfers
    """the devices' own updates (federated mode)"""
    overhead_bits: NDArray[np.int64]
    """of the uplink: reports, requests and acknowledgements"""
    energy_j: NDArray[np.float64]
    compute_s: NDArray[np.float64]
    """virtual time that a device's training takes"""
    round_s: float
    """virtual time until the round was over"""
    is_answered: NDArray[np.bool_]
    """its node answered in wall-clock time to all that reached it; False only in a deployment"""
    reward: NDArray[np.float64]


class Round:
    """One round under way."""

    def __init__(
        self,
        air: AirGrid,
        roster: Roster,
        service: Service,
        round_index: int,
        known: dict[int, DeviceReport],
    ) -> None:
        """``known`` [by device] are the newest reports; they are kept up to date in place."""
        self.air, self.roster, self.service = air, roster, service
        self.round_index, self.known = round_index, known
        self._compute: dict[int, tuple[float, float]] = {}
        self._silent: set[int] = set()

    def run(self) -> RoundResult:
        """From the question to what came of it."""
        service, cell = self.service, self.air.cell
        asked, devices = service.participants(self.round_index), range(service.num_devices)
        links = {
            d: _link_of(reply.content.metric_records["link"])
            for d, reply in self._ask("query", {d: RecordDict() for d in asked}).items()
        }
        # Who does not answer has no link that a plan could count on, and is sent nothing.
        silent = LinkReport(-np.inf, cell.config.bandwidth_hz, 0.0)
        before = [self.known[d] for d in devices]
        plan = service.plan(
            self.round_index,
            {d: self.known[d] for d in asked},
            {d: links.get(d, silent) for d in asked},
        )
        true_links = cell.true_links()
        installed, requests = self._update(plan, links)
        true_up = cell.true_links("up")
        grants = service.grant(self.round_index, requests) if requests else {}
        updates = self._collect(grants)
        up_snr_db = self.air.superposed_snr_db
        up_snr_db = true_up.snr_db if up_snr_db is None else up_snr_db
        rewards = service.conclude(
            self.round_index,
            [
                Outcome(
                    installed.get(d), self.air.deliveries[d].bits, float(true_links.rate_bps[d]),
                    updates.get(d), self.air.uplinks[d].bits if d in self.air.uplinks else 0,
                    float(true_up.rate_bps[d]), float(up_snr_db[d]),
                )
                for d in devices
            ],
        )  # fmt: skip
        return self._result(plan, true_links, before, links, installed, requests, grants, rewards)

    def _update(
        self, plan: Plan, links: Mapping[int, LinkReport]
    ) -> tuple[dict[int, DeviceReport], dict[int, Request]]:
        """Send updates and work; who has installed what came, and who asks to send in return."""
        contents: dict[int, RecordDict] = {}
        for d in links:
            content = RecordDict()
            if plan.payloads[d]:
                content["update"] = ConfigRecord({"payload": plan.payloads[d]})
            if d in plan.work:
                content["work"] = ConfigRecord(
                    {
                        "ranks": bytes(plan.work[d].astype(np.uint8)),
                        "importance": plan.importance,
                        "round": self.round_index,
                    }
                )
            if content:
                contents[d] = content
        installed: dict[int, DeviceReport] = {}
        requests: dict[int, Request] = {}
        for d, reply in self._ask("train", contents).items():
            if plan.payloads[d]:
                installed[d] = self.known[d]
            if "work" in reply.content:
                work = reply.content.config_records["work"]
                self._compute[d] = (number_of(work, "compute_s"), number_of(work, "compute_j"))
                requests[d] = Request(
                    self.known[d],
                    bytes_of(work, "worth"),
                    _link_of(reply.content.metric_records["link"]),
                    self.air.ready_s[d],
                )
        return installed, requests

    def _collect(self, grants: Mapping[int, bytes]) -> dict[int, bytes]:
        """Ask for updates; those that came up."""
        contents = {
            d: RecordDict({"grant": ConfigRecord({"ranks": ranks, "number": self.round_index + 1})})
            for d, ranks in grants.items()
        }
        return self.air.carry_up(self._ask("train.send", contents), self.service.symbols(grants))

    def _ask(self, message_type: str, contents: Mapping[int, RecordDict]) -> dict[int, Message]:
        if not contents:
            return {}
        answers = self.roster.ask(message_type, contents, self.round_index)
        for d, reply in answers.items():
            self.known[d] = report_of(reply)
        # Not heard of, though the message reached it: the node itself was silent.
        self._silent |= set(contents) - set(answers) - self.air.unreached
        return answers

    def _result(
        self,
        plan: Plan,
        links: Links,
        before: list[DeviceReport],
        reported: Mapping[int, LinkReport],
        installed: Mapping[int, DeviceReport],
        requests: Mapping[int, Request],
        grants: Mapping[int, bytes],
        reward: NDArray[np.float64],
    ) -> RoundResult:
        air, config = self.air, self.air.cell.config
        devices = range(self.service.num_devices)
        asked = self.service.participants(self.round_index)
        acked = np.array([d in installed for d in devices])
        reports = np.array([d in reported for d in devices]) * config.report_bits
        overhead = reports + acked * config.ack_bits
        overhead += np.array([8 * len(requests[d].worth) if d in requests else 0 for d in devices])
        lost = np.array([d in self._silent for d in devices])
        down_ok = [d in installed and installed[d].is_installed for d in devices]
        up_ranks = np.zeros_like(plan.ranks)
        for d, ranks in grants.items():
            up_ranks[d] = np.frombuffer(ranks, np.uint8)
        compute = np.array([self._compute.get(d, (0.0, 0.0)) for d in devices])
        up_links = {d: request.link for d, request in requests.items()}
        return RoundResult(
            round_index=self.round_index,
            links=links,
            requests=before,
            reports=[self.known[d] for d in devices],
            down=_transfers(
                {d: replace(of, delivered_bits=0) if lost[d] else of
                 for d, of in air.deliveries.items()},
                plan.ranks, down_ok, self._planned(reported, len(asked))
            ),
            up=_transfers(
                air.uplinks, up_ranks, [d in self.service.merged for d in devices],
                self._planned(up_links, len(asked)),
            ),
            overhead_bits=overhead,
            energy_j=self._energy_j(compute[:, 1]),
            compute_s=compute[:, 0],
            round_s=air.round_s(),
            reward=reward,
            is_answered=~lost,
        )  # fmt: skip

    def _planned(self, links: Mapping[int, LinkReport], sharers: int) -> NDArray[np.float64]:
        deadline_s = self.air.cell.config.deadline_s
        share_s = deadline_s / (sharers if self.service.is_shared_band else 1)
        rates = [
            links[d].planned_rate_bps if d in links else 0.0
            for d in range(self.service.num_devices)
        ]
        return np.array(rates) * share_s

    def _energy_j(self, compute_j: NDArray[np.float64]) -> NDArray[np.float64]:
        """[devices] drawn over the round."""
        air, config = self.air, self.air.cell.config
        is_federated = self.service.is_federated
        period_s = air.round_s() if is_federated else config.round_period_s
        found = compute_j.copy()
        for d in range(len(compute_j)):
            if air.round_deadline_s is not None and d in self._compute and self._compute[d][0] > 0:
                # Who is not ready by the deadline gives up there.
                left_s = max(air.round_deadline_s - air.deliveries[d].delay_s, 0.0)
                found[d] *= min(left_s / self._compute[d][0], 1.0)
            down, up = air.deliveries[d], air.uplinks.get(d)
            found[d] += down.energy_j + (up.energy_j if up else 0.0)
            idle_s = period_s - down.delay_s - (up.air_s if up else 0.0)
            found[d] += idle_energy_j(config.energy, max(idle_s, 0.0))
        return found


def _transfers(
    deliveries: Mapping[int, Delivery],
    ranks: Ranks,
    is_delivered: Sequence[bool],
    planned_bits: NDArray[np.float64],
) -> Transfers:
    nothing = Delivery(0, 0, 0.0, 0, 0.0, 0.0, 0.0, False, False)
    each = [deliveries.get(d, nothing) for d in range(len(ranks))]
    return Transfers(
        ranks=ranks,
        planned_bits=planned_bits,
        payload_bits=np.array([d.bits for d in each]),
        sent_bits=np.array([d.sent_bits for d in each]),
        delivered_bits=np.array([d.delivered_bits for d in each]),
        delay_s=np.array([d.delay_s for d in each]),
        is_delivered=np.array(is_delivered),
    )


def _link_of(record: MetricRecord) -> LinkReport:
    return LinkReport(
        float(record["snr_db"]),  # type: ignore[arg-type]
        float(record["bandwidth_hz"]),  # type: ignore[arg-type]
        float(record["planned_rate_bps"]),  # type: ignore[arg-type]
    )
