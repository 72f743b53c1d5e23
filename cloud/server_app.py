"""The federation's rounds over any Flower Grid, and the ServerApp around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from airllm.protocol import Deployment, DeviceReport
from channel.cell import Cell
from channel.open_cell import OpenCell
from cloud.clients.manager import ClientManager
from cloud.planning.downlink import Downlink
from cloud.planning.uplink import Uplink
from cloud.rounds.air_interface import AirInterface
from cloud.rounds.asynchronous import AsynchronousRounds
from cloud.rounds.record import RoundResult
from cloud.rounds.synchronous import Round


@dataclass(slots=True)
class Standing:
    """Where a federation stands between two rounds, beside what service, cell and grid hold."""

    num_done: int = 0
    """rounds that are over"""
    known: dict[int, DeviceReport] = field(default_factory=dict)
    """the newest report of each device"""
    device_of: dict[int, int] = field(default_factory=dict)
    """device of each node"""
    start_s: float = 0.0
    """virtual time at which the next round can begin"""
    under_way: dict[str, Any] = field(default_factory=dict)
    """state of asynchronous rounds"""

    def state_dict(self) -> dict[str, Any]:
        """All of it, as plain values."""
        return {
            "num_done": self.num_done,
            "known": [report.to_metrics() for report in self.known.values()],
            "device_of": dict(self.device_of),
            "start_s": self.start_s,
            "under_way": self.under_way,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.num_done = int(state["num_done"])
        reports = [DeviceReport.from_metrics(metrics) for metrics in state["known"]]
        self.known = {report.device: report for report in reports}
        self.device_of, self.start_s = dict(state["device_of"]), float(state["start_s"])
        self.under_way = state["under_way"]


def run_federation(
    grid: Grid,
    cell: Cell,
    downlink: Downlink,
    uplink: Uplink | None = None,
    *,
    on_round: Callable[[RoundResult], None],
    reply_timeout_s: float = 3600.0,
    connect_timeout_s: float = 60.0,
    is_stopped: Callable[[], bool] = lambda: False,
    standing: Standing | None = None,
) -> None:
    """Deploy the head, then let every round happen; results go to ``on_round`` one by one.

    Without ``uplink`` the mode is remote: devices only download. Its rounds start by the cell's
    period, those of federated mode when the one before is over. A node that does not answer within
    ``reply_timeout_s`` of wall-clock time counts as having missed its deadline. ``standing`` is
    kept up to date before every call of ``on_round``; given that of a run which was stopped, with
    the states of its other parts restored, this goes on with the round after it. Raises ValueError
    when devices are missing at the deployment, `AppFailed` when an app failed on a node, and
    `Stopped` when ``is_stopped`` says so while answers are awaited.
    """
    clients = ClientManager(
        grid,
        downlink.num_devices,
        Deployment(downlink.head),
        reply_timeout_s=reply_timeout_s,
        is_stopped=is_stopped,
    )
    standing = standing or Standing()
    if standing.num_done:
        clients.device_of = standing.device_of
    else:
        standing.known = clients.assemble(wait_s=connect_timeout_s)
        downlink.welcome(standing.known)
        if uplink is not None:
            uplink.welcome(standing.known)
    if uplink is not None and uplink.config.buffer:

        def on_merge(result: RoundResult) -> None:
            # Where several merges were of one moment, it is that after the last of them.
            standing.num_done, standing.device_of = rounds.version, clients.device_of
            standing.under_way = rounds.state_dict()
            on_round(result)

        rounds = AsynchronousRounds(
            clients, downlink, uplink, OpenCell(cell), standing.known, on_merge,
            state=standing.under_way,
        )  # fmt: skip
        rounds.run()
        return
    for round_index in range(standing.num_done, downlink.num_rounds):
        cell.begin_round(round_index, None if uplink is None else standing.start_s)
        air = AirInterface(
            cell,
            dropouts=uplink.participation.dropouts(round_index) if uplink else {},
            round_deadline_s=uplink.round_deadline_s if uplink else None,
            superposition_threshold_db=uplink.superposition_threshold_db if uplink else None,
        )
        result = Round(air, clients, downlink, uplink, round_index, standing.known).run()
        standing.num_done, standing.device_of = round_index + 1, clients.device_of
        standing.start_s = air.start_s + result.round_s
        on_round(result)


def make_server_app(serve: Callable[[Grid, Context], None]) -> ServerApp:
    """The app that Flower starts; ``serve`` composes the parts and calls `run_federation`."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        serve(grid, context)

    return app
