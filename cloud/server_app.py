"""The federation's rounds over any Flower Grid, and the ServerApp around them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp
from numpy.typing import NDArray

from airllm.ranks import Ranks
from airllm.report import DeviceReport
from channel.cell import Cell, Links
from cloud.air_grid import AirGrid
from cloud.service import CloudService, LinkReport, Outcome, Plan

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
    ranks: Ranks
    """[devices, projections]"""
    planned_bits: NDArray[np.float64]
    """what the plan allows each device: planned rate times its share of the deadline"""
    payload_bits: NDArray[np.int64]
    sent_bits: NDArray[np.float64]
    delivered_bits: NDArray[np.int64]
    overhead_bits: NDArray[np.int64]
    """of the uplink: reports and acknowledgements"""
    delay_s: NDArray[np.float64]
    energy_j: NDArray[np.float64]
    is_delivered: NDArray[np.bool_]
    """arrived in time, intact, and in use; False too where nothing was sent"""
    reward: NDArray[np.float64]


def run_federation(
    grid: Grid,
    cell: Cell,
    service: CloudService,
    *,
    on_round: Callable[[RoundResult], None],
    reply_timeout_s: float = 3600.0,
) -> None:
    """Deploy the head, then let every round happen; results go to ``on_round`` one by one.

    A node that does not answer within ``reply_timeout_s`` of wall-clock time counts as having
    missed its deadline. Raises ValueError when devices are missing at the deployment, and
    RuntimeError when an app failed on a node.
    """
    air = AirGrid(grid, cell)
    nodes = _await_nodes(air, service.num_devices, timeout_s=reply_timeout_s)
    known = _deploy(air, nodes, service, reply_timeout_s)
    node_of = {device: node for node, device in air.device_of.items()}
    devices = range(service.num_devices)
    for round_index in range(service.num_rounds):
        air.begin_round(round_index)
        links: dict[int, LinkReport] = {}
        queries = [_message(air, node_of[d], "query", RecordDict(), round_index) for d in devices]
        for reply in _answers(air.send_and_receive(queries, timeout=reply_timeout_s)):
            report = _report_of(reply)
            known[report.device] = report
            links[report.device] = _link_of(reply.content.metric_records["link"])
        # Who does not answer has no link that a plan could count on.
        silent = LinkReport(-np.inf, cell.config.bandwidth_hz, 0.0)
        requests = [known[d] for d in devices]
        reported = [links.get(d, silent) for d in devices]
        plan = service.plan(round_index, requests, reported)
        true_links = cell.true_links()
        updates = [
            _message(
                air,
                node_of[d],
                "train",
                RecordDict({"update": ConfigRecord({"payload": plan.payloads[d]})}),
                round_index,
            )
            for d in devices
            if plan.payloads[d]
        ]
        answers: dict[int, DeviceReport] = {}
        for reply in _answers(air.send_and_receive(updates, timeout=reply_timeout_s)):
            report = _report_of(reply)
            known[report.device] = answers[report.device] = report
        outcomes = [
            Outcome(answers.get(d), 8 * len(plan.payloads[d]), float(true_links.rate_bps[d]))
            for d in devices
        ]
        reward = service.conclude(round_index, outcomes)
        on_round(
            _result(
                round_index, air, service, plan, true_links, requests,
                [known[d] for d in devices], reported, answers, reward,
            )
        )  # fmt: skip


def make_server_app(serve: Callable[[Grid, Context], None]) -> ServerApp:
    """The app that Flower starts; ``serve`` composes the parts and calls `run_federation`."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        serve(grid, context)

    return app


def _await_nodes(air: AirGrid, count: int, *, timeout_s: float) -> list[int]:
    """Nodes of a deployment come up one by one; those of a simulation are there at once."""
    deadline = time.monotonic() + timeout_s
    while len(nodes := sorted(air.get_node_ids())) < count and time.monotonic() < deadline:
        time.sleep(1.0)
    if len(nodes) != count:
        raise ValueError(
            f"num_devices is {count}, but {len(nodes)} nodes are connected; make them equal "
            f"(in a simulation: --federation-config 'num-supernodes={count}')"
        )
    return nodes


def _deploy(
    air: AirGrid, nodes: list[int], service: CloudService, timeout_s: float
) -> dict[int, DeviceReport]:
    content = RecordDict()
    if service.head is not None:
        head = [service.head.weight.cpu().numpy(), service.head.bias.cpu().numpy()]
        content["head"] = ArrayRecord(head)
    messages = [_message(air, node, "query.deploy", content, 0) for node in nodes]
    replies = _answers(air.send_and_receive(messages, timeout=timeout_s))
    reports = {report.device: report for report in map(_report_of, replies)}
    missing = sorted(set(range(service.num_devices)) - set(reports))
    if missing:
        raise ValueError(
            f"devices {missing} did not answer the deployment; give each node its own partition-id "
            f"from 0 to {service.num_devices - 1}"
        )
    return reports


def _message(
    air: AirGrid, node: int, message_type: str, content: RecordDict, round_index: int
) -> Message:
    return Message(
        content, dst_node_id=node, message_type=message_type, group_id=str(round_index + 1)
    )


def _answers(replies: Iterable[Message]) -> list[Message]:
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


def _report_of(reply: Message) -> DeviceReport:
    return DeviceReport.from_metrics(dict(reply.content.metric_records["report"]))


def _link_of(record: MetricRecord) -> LinkReport:
    return LinkReport(
        float(record["snr_db"]),  # type: ignore[arg-type]
        float(record["bandwidth_hz"]),  # type: ignore[arg-type]
        float(record["planned_rate_bps"]),  # type: ignore[arg-type]
    )


def _result(
    round_index: int,
    air: AirGrid,
    service: CloudService,
    plan: Plan,
    links: Links,
    requests: list[DeviceReport],
    reports: list[DeviceReport],
    reported: list[LinkReport],
    answers: dict[int, DeviceReport],
    reward: NDArray[np.float64],
) -> RoundResult:
    config, devices = air.cell.config, range(service.num_devices)
    deliveries = [air.deliveries[d] for d in devices]
    share = service.num_devices if service.is_shared_band else 1
    acked = np.array([d in answers for d in devices])
    return RoundResult(
        round_index=round_index,
        links=links,
        requests=requests,
        reports=reports,
        ranks=plan.ranks,
        planned_bits=np.array([r.planned_rate_bps for r in reported]) * config.deadline_s / share,
        payload_bits=np.array([d.bits for d in deliveries]),
        sent_bits=np.array([d.sent_bits for d in deliveries]),
        delivered_bits=np.array([d.delivered_bits for d in deliveries]),
        overhead_bits=config.report_bits + acked * config.ack_bits,
        delay_s=np.array([d.delay_s for d in deliveries]),
        energy_j=np.array([d.energy_j for d in deliveries]),
        is_delivered=np.array([d in answers and answers[d].is_installed for d in devices]),
        reward=reward,
    )
