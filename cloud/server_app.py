"""The federation's rounds over any Flower Grid, and the ServerApp around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from numpy.typing import NDArray

from airllm.ranks import Ranks
from airllm.report import DeviceReport
from channel.cell import Cell, Links
from cloud.air_grid import AirGrid
from cloud.roster import Roster, report_of
from cloud.service import CloudService, LinkReport, Outcome, Plan


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
    is_answered: NDArray[np.bool_]
    """its node answered in wall-clock time to all that reached it; False only in a deployment"""
    reward: NDArray[np.float64]


@dataclass(slots=True)
class Standing:
    """Where a federation stands between two rounds, beside what service, cell and grid hold."""

    num_done: int = 0
    """rounds that are over"""
    known: dict[int, DeviceReport] = field(default_factory=dict)
    """the newest report of each device"""
    device_of: dict[int, int] = field(default_factory=dict)
    """device of each node"""

    def state_dict(self) -> dict[str, Any]:
        """All of it, as plain values."""
        return {
            "num_done": self.num_done,
            "known": [report.to_metrics() for report in self.known.values()],
            "device_of": dict(self.device_of),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.num_done = int(state["num_done"])
        reports = [DeviceReport.from_metrics(metrics) for metrics in state["known"]]
        self.known = {report.device: report for report in reports}
        self.device_of = dict(state["device_of"])


def run_federation(
    grid: Grid,
    cell: Cell,
    service: CloudService,
    *,
    on_round: Callable[[RoundResult], None],
    reply_timeout_s: float = 3600.0,
    connect_timeout_s: float = 60.0,
    is_stopped: Callable[[], bool] = lambda: False,
    standing: Standing | None = None,
) -> None:
    """Deploy the head, then let every round happen; results go to ``on_round`` one by one.

    A node that does not answer within ``reply_timeout_s`` of wall-clock time counts as having
    missed its deadline. ``standing`` is kept up to date before every call of ``on_round``; given
    that of a run which was stopped, with the states of its other parts restored, this goes on with
    the round after it. Raises ValueError when devices are missing at the deployment,
    RuntimeError when an app failed on a node, and `Stopped` when ``is_stopped`` says so while
    answers are awaited.
    """
    air = AirGrid(grid, cell)
    roster = Roster(
        air,
        service.num_devices,
        _deployment(service),
        reply_timeout_s=reply_timeout_s,
        is_stopped=is_stopped,
    )
    standing = standing or Standing()
    if standing.num_done:
        air.device_of = standing.device_of
    else:
        standing.known = roster.assemble(wait_s=connect_timeout_s)
    known, devices = standing.known, range(service.num_devices)
    for round_index in range(standing.num_done, service.num_rounds):
        air.begin_round(round_index)
        links: dict[int, LinkReport] = {}
        queries = {d: RecordDict() for d in devices}
        for d, reply in roster.ask("query", queries, round_index).items():
            known[d] = report_of(reply)
            links[d] = _link_of(reply.content.metric_records["link"])
        # Who does not answer has no link that a plan could count on, and is sent nothing.
        silent = LinkReport(-np.inf, cell.config.bandwidth_hz, 0.0)
        requests = [known[d] for d in devices]
        reported = [links.get(d, silent) for d in devices]
        plan = service.plan(round_index, requests, reported)
        true_links = cell.true_links()
        updates = {
            d: RecordDict({"update": ConfigRecord({"payload": plan.payloads[d]})})
            for d in devices
            if plan.payloads[d] and d in links
        }
        answers: dict[int, DeviceReport] = {}
        for d, reply in roster.ask("train", updates, round_index).items():
            known[d] = answers[d] = report_of(reply)
        outcomes = [
            Outcome(
                answers.get(d),
                8 * len(plan.payloads[d]) if d in updates else 0,
                float(true_links.rate_bps[d]),
            )
            for d in devices
        ]
        reward = service.conclude(round_index, outcomes)
        standing.num_done, standing.device_of = round_index + 1, air.device_of
        on_round(
            _result(
                round_index, air, service, plan, true_links, requests,
                [known[d] for d in devices], links, answers, reward,
            )
        )  # fmt: skip


def make_server_app(serve: Callable[[Grid, Context], None]) -> ServerApp:
    """The app that Flower starts; ``serve`` composes the parts and calls `run_federation`."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        serve(grid, context)

    return app


def _deployment(service: CloudService) -> RecordDict:
    """What a device is given out of band, before its first round."""
    if service.head is None:
        return RecordDict()
    head = [service.head.weight.cpu().numpy(), service.head.bias.cpu().numpy()]
    return RecordDict({"head": ArrayRecord(head)})


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
    reported: dict[int, LinkReport],
    answers: dict[int, DeviceReport],
    reward: NDArray[np.float64],
) -> RoundResult:
    config, devices = air.cell.config, range(service.num_devices)
    deliveries = [air.deliveries[d] for d in devices]
    share = service.num_devices if service.is_shared_band else 1
    planned_bps = [reported[d].planned_rate_bps if d in reported else 0.0 for d in devices]
    asked = np.array([d in reported for d in devices])
    acked = np.array([d in answers for d in devices])
    # Not heard of, though the air let the update through: the node itself was silent.
    lost = np.array([d.bits > 0 and d.is_delivered for d in deliveries]) & ~acked
    return RoundResult(
        round_index=round_index,
        links=links,
        requests=requests,
        reports=reports,
        ranks=plan.ranks,
        planned_bits=np.array(planned_bps) * config.deadline_s / share,
        payload_bits=np.array([d.bits for d in deliveries]),
        sent_bits=np.array([d.sent_bits for d in deliveries]),
        delivered_bits=np.array([d.delivered_bits for d in deliveries]) * ~lost,
        overhead_bits=asked * config.report_bits + acked * config.ack_bits,
        delay_s=np.array([d.delay_s for d in deliveries]),
        energy_j=np.array([d.energy_j for d in deliveries]),
        is_delivered=np.array([d in answers and answers[d].is_installed for d in devices]),
        is_answered=asked & ~lost,
        reward=reward,
    )
