"""Flower's Grid with the air in it: where messages meet SimPy's channel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict

from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from channel.cell import Cell, Delivery
from cloud.service import LinkReport

# Flower's own error codes are below 100.
MISSED_DEADLINE = 1000


class AirGrid(Grid):
    """Decorates any Grid: updates cross the cell, reports come back with the link on them.

    A message with a record ``update`` is sent over the air: in time, its bytes go on to the node
    (with a bit flipped where the link let an error through); too late, the node never hears of it
    and the reply is an Error. Everything else is control traffic, counted but not timed. The
    channel lives here, at the server, whatever runtime carries the messages.
    """

    def __init__(self, grid: Grid, cell: Cell) -> None:
        self._grid, self.cell = grid, cell
        self.device_of: dict[int, int] = {}
        """device index of each node, once its first report has come"""
        self.deliveries: dict[int, Delivery] = {}
        """what the air did to each device's update of this round, nothing where none was sent"""
        self._lost: dict[str, Message] = {}

    def begin_round(self, round_index: int) -> None:
        """Let virtual time go on to a round's begin."""
        self.cell.begin_round(round_index)
        self.deliveries = self.cell.transfer(dict.fromkeys(range(self.cell.num_devices), 0))

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
        through, lost = self._through_air(list(messages))
        ids = list(self._grid.push_messages(through))
        for number, reply in enumerate(lost):
            key = f"lost-{len(self._lost)}-{number}"
            reply.metadata.__dict__["_reply_to_message_id"] = key  # as of any other reply
            self._lost[key] = reply
            ids.append(key)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ids = list(message_ids)
        lost = [self._lost.pop(key) for key in ids if key in self._lost]
        others = [key for key in ids if not key.startswith("lost-")]
        return [*self._stamped(self._grid.pull_messages(others)), *lost]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        through, lost = self._through_air(list(messages))
        replies = self._grid.send_and_receive(through, timeout=timeout) if through else []
        return [*self._stamped(replies), *lost]

    def _through_air(self, messages: list[Message]) -> tuple[list[Message], list[Message]]:
        """What reaches its node, and an Error in reply to what does not."""
        payloads = {
            self.device_of[m.metadata.dst_node_id]: m for m in messages if "update" in m.content
        }
        if not payloads:
            return messages, []
        bits = {device: 8 * len(_payload(m)) for device, m in payloads.items()}
        self.deliveries |= self.cell.transfer(bits)
        through = [m for m in messages if "update" not in m.content]
        lost = []
        for device, message in payloads.items():
            delivery = self.deliveries[device]
            if not delivery.is_delivered:
                reason = (
                    f"device {device} missed its deadline: {delivery.sent_bits:.0f} of "
                    f"{delivery.bits} bits after {delivery.delay_s:g} s"
                )
                lost.append(Message(Error(MISSED_DEADLINE, reason), reply_to=message))
                continue
            if delivery.has_bit_error:
                data = bytearray(_payload(message))
                # Any bit will do: the checksum covers them all.
                data[len(data) // 2] ^= 1
                message.content["update"] = ConfigRecord({"payload": bytes(data)})
            through.append(message)
        return through, lost

    def _stamped(self, replies: Iterable[Message]) -> list[Message]:
        """Put the link as reported onto each report; learn which node is which device."""
        stamped = list(replies)
        links: Mapping[int, LinkReport] | None = None
        for reply in stamped:
            if not reply.has_content() or "report" not in reply.content:
                continue
            device = int(reply.content.metric_records["report"]["device"])  # type: ignore[arg-type]
            self.device_of[reply.metadata.src_node_id] = device
            if reply.metadata.message_type == "query":
                links = links or self._reported_links()
                reply.content["link"] = MetricRecord(dict(asdict(links[device])))
        return stamped

    def _reported_links(self) -> dict[int, LinkReport]:
        links = self.cell.reported_links()
        planned_bps = self.cell.planned_rate_bps(links)
        return {
            device: LinkReport(link.snr_db, link.bandwidth_hz, float(planned_bps[device]))
            for device, link in enumerate(links)
        }


def _payload(message: Message) -> bytes:
    data = message.content.config_records["update"]["payload"]
    if not isinstance(data, bytes):
        raise TypeError(f"an update's payload must be bytes, got {type(data).__name__}")
    return data
