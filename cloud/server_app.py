"""The federation's rounds over any Flower Grid, and the ServerApp around them."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import ArrayRecord, Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from channel.cell import Cell
from channel.open_cell import OpenCell
from cloud.air_grid import AirGrid
from cloud.buffered import BufferedRun
from cloud.federated import FederatedService
from cloud.roster import Roster
from cloud.rounds import Round, RoundResult, Service


def run_federation(
    grid: Grid,
    cell: Cell,
    service: Service,
    *,
    on_round: Callable[[RoundResult], None],
    reply_timeout_s: float = 3600.0,
    connect_timeout_s: float = 60.0,
    is_stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Deploy the head, then let every round happen; results go to ``on_round`` one by one.

    Rounds of remote mode start by the cell's period, federated ones when the one before is over. A
    node that does not answer within ``reply_timeout_s`` of wall-clock time counts as having
    missed its deadline. Raises ValueError when devices are missing at the deployment,
    `AppFailed` when an app failed on a node, and `Stopped` when ``is_stopped`` says so while
    answers are awaited.
    """
    buffered = service if isinstance(service, FederatedService) and service.config.buffer else None
    air = AirGrid(grid, cell, round_deadline_s=service.round_deadline_s, is_timed=buffered is None)
    roster = Roster(
        air,
        service.num_devices,
        deployment_of(service),
        reply_timeout_s=reply_timeout_s,
        is_stopped=is_stopped,
    )
    known = roster.assemble(wait_s=connect_timeout_s)
    service.welcome(known)
    if buffered is not None:
        BufferedRun(roster, buffered, OpenCell(cell), known, on_round).run()
        return
    start_s = 0.0
    for round_index in range(service.num_rounds):
        air.begin_round(
            round_index,
            start_s=start_s if service.is_federated else None,
            dropouts=service.dropouts(round_index),
        )
        on_round(Round(air, roster, service, round_index, known).run())
        start_s = air.start_s + air.round_s()


def make_server_app(serve: Callable[[Grid, Context], None]) -> ServerApp:
    """The app that Flower starts; ``serve`` composes the parts and calls `run_federation`."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        serve(grid, context)

    return app


def deployment_of(service: Service) -> RecordDict:
    """What a device is given out of band, before its first round."""
    if service.head is None:
        return RecordDict()
    head = [service.head.weight.cpu().numpy(), service.head.bias.cpu().numpy()]
    return RecordDict({"head": ArrayRecord(head)})
