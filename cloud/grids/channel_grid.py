"""The channel between any Flower strategy and any ClientApp."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from channel.cell import Cell
from channel.delivery import Delivery, Direction

# Flower's own error codes are below 100.
MISSED_DEADLINE = 1000


@dataclass(frozen=True, slots=True)
class Crossing:
    """One message's or one reply's way over the air."""

    exchange: int
    """from 0: a strategy's round is one to train, and one more where it evaluates"""
    message_type: str
    device: int
    """of the cell, one for each node"""
    direction: Direction
    bits: int
    start_s: float
    """virtual time at which it was ready to be sent"""
    delay_s: float
    is_delivered: bool


class ChannelGrid(Grid):
    """Decorates any Grid: what messages and replies carry crosses the cell.

    ``grid = ChannelGrid(grid, cell)`` in a ServerApp is all it takes: ``strategy.start(grid, ...)``
    then sees, in the place of whatever came too late, Flower's Error replies, which it leaves out
    as it does failed nodes. An exchange, `send_and_receive`, is one round of the cell and lasts
    until its last transfer has ended or was given up: messages ``channel.deadline_s`` after they
    were sent, replies as long after the last of them was ready. Messages share the downlink; each
    reply goes up as soon as its device is ready. One that a bit error hit is lost, as by a
    checksum.

    Nodes become devices of the cell in the order of their ids, and stay what they are; one that
    joins later takes the next device, or that of a node that has left. (Flower's simulation draws
    ids at random, so there equal seeds do not put equal nodes behind equal links.) Neither metrics
    nor configurations count, only arrays: ``bits_of`` says otherwise.
    """

    def __init__(
        self,
        grid: Grid,
        cell: Cell,
        *,
        compute_s: Callable[[Message], float] = lambda reply: 0.0,
        bits_of: Callable[[RecordDict], int] | None = None,
    ) -> None:
        """``compute_s`` of a reply, to train or to evaluate, is the virtual time that its device
        took for it, such as ``lambda reply: reply.content["metrics"].get("train_time", 0.0)``."""
        self._grid, self.cell = grid, cell
        self._compute_s, self._bits_of = compute_s, bits_of or array_bits
        self._device_of: dict[int, int] = {}
        self._exchange = 0
        self._end_s = 0.0
        self.crossings: list[Crossing] = []
        """all of them, in the order of exchanges, downlink first: rows for ``pandas.DataFrame``"""

    def set_run(self, run: Run) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError("a ChannelGrid times whole exchanges; use send_and_receive")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError("a ChannelGrid times whole exchanges; use send_and_receive")

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        device_of = self._welcome()
        asked: dict[int, Message] = {}
        for message in messages:
            node = message.metadata.dst_node_id
            if node not in device_of:
                raise ValueError(f"node {node} is not among those that the grid knows")
            if (device := device_of[node]) in asked:
                raise ValueError(f"node {node} was sent two messages at once; send one an exchange")
            asked[device] = message
        self.cell.begin_round(self._exchange, self._end_s)
        down = self._cross({d: m.content for d, m in asked.items()}, asked, "down", {})
        through = [m for d, m in asked.items() if _is_good(down[d])]
        lost = {d: m for d, m in asked.items() if not _is_good(down[d])}
        replies = list(self._grid.send_and_receive(through, timeout=timeout)) if through else []
        answers = {device_of[r.metadata.src_node_id]: r for r in replies if r.has_content()}
        ready_s = {d: down[d].delay_s + self._compute_s(r) for d, r in answers.items()}
        up = self._cross({d: r.content for d, r in answers.items()}, asked, "up", ready_s)
        lost |= {d: asked[d] for d in answers if not _is_good(up[d])}
        ends = [delivery.delay_s for delivery in down.values()]
        ends += [ready_s[d] + delivery.delay_s for d, delivery in up.items()]
        self._end_s += max(ends, default=0.0)
        self._exchange += 1
        return [
            # An Error of Flower's may come from the SuperLink in the node's place.
            *(r for r in replies if r.has_error() or device_of[r.metadata.src_node_id] not in lost),
            *(
                Message(Error(MISSED_DEADLINE, f"device {d} missed its deadline"), reply_to=m)
                for d, m in lost.items()
            ),
        ]

    def _welcome(self) -> dict[int, int]:
        """The device of each node, that of new ones included."""
        present = set(self._grid.get_node_ids())
        if len(present) > self.cell.num_devices:
            raise ValueError(
                f"{len(present)} nodes are connected, but num_devices of the cell is "
                f"{self.cell.num_devices}; give the cell one device a node"
            )
        for node in sorted(present - self._device_of.keys()):
            taken = set(self._device_of.values())
            # First those that nobody had, then those of nodes that have left.
            free = [d for d in range(self.cell.num_devices) if d not in taken]
            left = [n for n in self._device_of if n not in present]
            self._device_of[node] = free[0] if free else self._device_of.pop(left[0])
        return self._device_of

    def _cross(
        self,
        contents: dict[int, RecordDict],
        asked: dict[int, Message],
        direction: Direction,
        ready_s: dict[int, float],
    ) -> dict[int, Delivery]:
        bits = {d: self._bits_of(content) for d, content in contents.items()}
        deadline_s = max(ready_s.values(), default=0.0) + self.cell.config.deadline_s
        found = self.cell.transfer(
            bits, direction=direction, start_s=ready_s, begin_s=self._end_s, deadline_s=deadline_s
        )
        self.crossings += [
            Crossing(
                self._exchange, asked[d].metadata.message_type, d, direction, bits[d],
                self._end_s + ready_s.get(d, 0.0), delivery.delay_s, _is_good(delivery),
            )
            for d, delivery in found.items()
        ]  # fmt: skip
        return found


def array_bits(content: RecordDict) -> int:
    """What a message's arrays weigh, eight bits a byte."""
    return 8 * sum(record.count_bytes() for record in content.array_records.values())


def _is_good(delivery: Delivery) -> bool:
    return delivery.is_delivered and not delivery.has_bit_error
