"""One round over Flower's messages: questions, updates down, grants, updates up, and the books."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from numpy.typing import NDArray

from airllm.ranks import Ranks
from airllm.report import DeviceReport
from airllm.tuning import Head
from channel.cell import Delivery, Links
from channel.energy import idle_energy_j, receive_energy_j, transmit_energy_j
from cloud.air_grid import AirGrid
from cloud.participation import Dropout
from cloud.service import LinkReport, Outcome, Plan, Request

logger = logging.getLogger(__name__)

# Flower's codes for an app that did not load, raised or crashed; its other codes, and the air's,
# say that a node was not reached.
_FAILED_APP = (
    ErrorCode.UNKNOWN,
    ErrorCode.LOAD_CLIENT_APP_EXCEPTION,
    ErrorCode.CLIENT_APP_RAISED_EXCEPTION,
    ErrorCode.MOD_FAILED_PRECONDITION,
    ErrorCode.INVALID_FAB,
    ErrorCode.CLIENT_APP_CRASHED,
)


class Service(Protocol):
    """The cloud of either mode: `CloudService` or `FederatedService`."""

    head: Head | None
    num_devices: int
    num_rounds: int
    is_shared_band: bool
    is_federated: bool
    merged: Collection[int]
    """devices whose own update the round before has merged"""

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

    def conclude(self, round_index: int, outcomes: Sequence[Outcome]) -> NDArray[np.float64]:
        """Take in what came of it; rewards [devices]."""
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
    """virtual time that a device trained"""
    round_s: float
    """virtual time until the round was over"""
    reward: NDArray[np.float64]


class Round:
    """One round under way."""

    def __init__(
        self,
        air: AirGrid,
        service: Service,
        round_index: int,
        known: dict[int, DeviceReport],
        timeout_s: float,
    ) -> None:
        """``known`` [by device] are the newest reports; they are kept up to date in place."""
        self.air, self.service, self.round_index = air, service, round_index
        self.known, self.timeout_s = known, timeout_s
        self._node_of = {device: node for node, device in air.device_of.items()}
        self._compute: dict[int, tuple[float, float]] = {}

    def run(self) -> RoundResult:
        service, cell = self.service, self.air.cell
        asked, devices = service.participants(self.round_index), range(service.num_devices)
        links: dict[int, LinkReport] = {}
        for reply in self._send({d: RecordDict() for d in asked}, "query"):
            report = self._take_in(reply)
            links[report.device] = _link_of(reply.content.metric_records["link"])
        # Who does not answer has no link that a plan could count on.
        silent = LinkReport(-np.inf, cell.config.bandwidth_hz, 0.0)
        before = [self.known[d] for d in devices]
        plan = service.plan(
            self.round_index,
            {d: self.known[d] for d in asked},
            {d: links.get(d, silent) for d in asked},
        )
        true_links = cell.true_links()
        installed, requests = self._update(plan)
        true_up = cell.true_links("up").rate_bps if requests else np.zeros(len(devices))
        grants = service.grant(self.round_index, requests) if requests else {}
        updates = self._collect(grants)
        rewards = service.conclude(
            self.round_index,
            [
                Outcome(
                    installed.get(d), 8 * len(plan.payloads[d]), float(true_links.rate_bps[d]),
                    updates.get(d), self.air.uplinks[d].bits if d in self.air.uplinks else 0,
                    float(true_up[d]),
                )
                for d in devices
            ],
        )  # fmt: skip
        return self._result(plan, true_links, before, links, installed, requests, grants, rewards)

    def _update(self, plan: Plan) -> tuple[dict[int, DeviceReport], dict[int, Request]]:
        """Send updates and work; who has installed what came, and who asks to send in return."""
        contents = {}
        for d in sorted({d for d, data in enumerate(plan.payloads) if data} | set(plan.work)):
            contents[d] = RecordDict()
            if plan.payloads[d]:
                contents[d]["update"] = ConfigRecord({"payload": plan.payloads[d]})
            if d in plan.work:
                contents[d]["work"] = ConfigRecord(
                    {
                        "ranks": bytes(plan.work[d].astype(np.uint8)),
                        "importance": plan.importance,
                        "round": self.round_index,
                    }
                )
        installed: dict[int, DeviceReport] = {}
        requests: dict[int, Request] = {}
        for reply in self._send(contents, "train"):
            report = self._take_in(reply)
            if plan.payloads[report.device]:
                installed[report.device] = report
            work = reply.content.config_records.get("work")
            if work is not None:
                self._compute[report.device] = (
                    _number(work, "compute_s"),
                    _number(work, "compute_j"),
                )
                worth = work.get("worth")
                requests[report.device] = Request(
                    report,
                    worth if isinstance(worth, bytes) else b"",
                    _link_of(reply.content.metric_records["link"]),
                    self.air.ready_s[report.device],
                )
        return installed, requests

    def _collect(self, grants: Mapping[int, bytes]) -> dict[int, bytes]:
        """Ask for updates; those that came up."""
        contents = {
            d: RecordDict({"grant": ConfigRecord({"ranks": ranks, "number": self.round_index + 1})})
            for d, ranks in grants.items()
        }
        updates = {}
        for reply in self._send(contents, "train.send"):
            report = self._take_in(reply)
            if "update" in reply.content:
                data = reply.content.config_records["update"]["payload"]
                updates[report.device] = data if isinstance(data, bytes) else b""
        return updates

    def _send(self, contents: Mapping[int, RecordDict], message_type: str) -> list[Message]:
        if not contents:
            return []
        messages = [
            message_to(self.air, self._node_of[d], message_type, content, self.round_index)
            for d, content in contents.items()
        ]
        return answers_of(self.air.send_and_receive(messages, timeout=self.timeout_s))

    def _take_in(self, reply: Message) -> DeviceReport:
        report = report_of(reply)
        self.known[report.device] = report
        return report

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
        reports = np.isin(devices, asked) * config.report_bits
        overhead = reports + acked * config.ack_bits
        overhead += np.array([8 * len(requests[d].worth) if d in requests else 0 for d in devices])
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
                air.deliveries, plan.ranks, down_ok, self._planned(reported, len(asked))
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
        air, energy = self.air, self.air.cell.config.energy
        if not self.service.is_federated:
            return np.array([air.deliveries[d].energy_j for d in range(len(compute_j))])
        found = compute_j.copy()
        for d in range(len(compute_j)):
            listened_s = air.deliveries[d].delay_s
            sent_s = air.uplinks[d].air_s if d in air.uplinks else 0.0
            found[d] += receive_energy_j(energy, listened_s) + transmit_energy_j(energy, sent_s)
            found[d] += idle_energy_j(energy, max(air.round_s() - listened_s - sent_s, 0.0))
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


def message_to(
    air: AirGrid, node: int, message_type: str, content: RecordDict, round_index: int
) -> Message:
    return Message(
        content, dst_node_id=node, message_type=message_type, group_id=str(round_index + 1)
    )


def answers_of(replies: Iterable[Message]) -> list[Message]:
    """Replies with content; lost ones are outcomes, failed apps are not."""
    answers = []
    for reply in replies:
        if reply.has_content():
            answers.append(reply)
        elif reply.error.code in _FAILED_APP:
            raise RuntimeError(f"the app of a device failed: {reply.error.reason}")
        else:
            logger.info("%s", reply.error.reason)
    return answers


def report_of(reply: Message) -> DeviceReport:
    return DeviceReport.from_metrics(dict(reply.content.metric_records["report"]))


def _link_of(record: MetricRecord) -> LinkReport:
    return LinkReport(
        float(record["snr_db"]),  # type: ignore[arg-type]
        float(record["bandwidth_hz"]),  # type: ignore[arg-type]
        float(record["planned_rate_bps"]),  # type: ignore[arg-type]
    )


def _number(record: ConfigRecord, key: str) -> float:
    """A number >= 0 that a device sent; 0 for anything else."""
    value = record.get(key)
    is_good = isinstance(value, int | float) and np.isfinite(value)
    return max(float(value), 0.0) if is_good else 0.0  # type: ignore[arg-type]
