"""The federation's rounds over any Flower Grid, and the ServerApp around them."""

from __future__ import annotations

import time
from collections.abc import Callable

from flwr.app import ArrayRecord, Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from airllm.report import DeviceReport
from channel.cell import Cell
from cloud.air_grid import AirGrid
from cloud.rounds import Round, RoundResult, Service, answers_of, message_to, report_of


def run_federation(
    grid: Grid,
    cell: Cell,
    service: Service,
    *,
    on_round: Callable[[RoundResult], None],
    reply_timeout_s: float = 3600.0,
    round_deadline_s: float | None = None,
) -> None:
    """Deploy the head, then let every round happen; results go to ``on_round`` one by one.

    A node that does not answer within ``reply_timeout_s`` of wall-clock time counts as having
    missed its deadline; ``round_deadline_s`` is of virtual time, from a round's start until updates
    of devices are in. Rounds of remote mode start by the cell's period, federated ones when the one
    before is over. Raises ValueError when devices are missing at the deployment, and RuntimeError
    when an app failed on a node.
    """
    air = AirGrid(grid, cell)
    air.round_deadline_s = round_deadline_s
    nodes = _await_nodes(air, service.num_devices, timeout_s=reply_timeout_s)
    known = _deploy(air, nodes, service, reply_timeout_s)
    start_s = 0.0
    for round_index in range(service.num_rounds):
        air.begin_round(
            round_index,
            start_s=start_s if service.is_federated else None,
            dropouts=service.dropouts(round_index),
        )
        on_round(Round(air, service, round_index, known, reply_timeout_s).run())
        start_s = air.start_s + air.round_s()


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
    air: AirGrid, nodes: list[int], service: Service, timeout_s: float
) -> dict[int, DeviceReport]:
    content = RecordDict()
    if service.head is not None:
        head = [service.head.weight.cpu().numpy(), service.head.bias.cpu().numpy()]
        content["head"] = ArrayRecord(head)
    messages = [message_to(air, node, "query.deploy", content, 0) for node in nodes]
    replies = answers_of(air.send_and_receive(messages, timeout=timeout_s))
    reports = {report.device: report for report in map(report_of, replies)}
    missing = sorted(set(range(service.num_devices)) - set(reports))
    if missing:
        raise ValueError(
            f"devices {missing} did not answer the deployment; give each node its own partition-id "
            f"from 0 to {service.num_devices - 1}"
        )
    return reports
