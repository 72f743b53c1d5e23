"""Flower's Grid with the air in it: where messages meet SimPy's channel."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace

from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from channel.cell import Cell, Delivery, Direction
from cloud.participation import Dropout
from cloud.service import LinkReport

logger = logging.getLogger(__name__)

# Flower's own error codes are below 100.
MISSED_DEADLINE, UNREACHABLE = 1000, 1001


class AirGrid(Grid):
    """Decorates any Grid: updates cross the cell, reports come back with the link on them.

    A message with a record ``update`` is sent over the air: in time, its bytes go on to the node
    (with a bit flipped where the link let an error through); too late, the node never hears of it
    and the reply is an Error. A reply with such a record crosses the uplink, once its device's
    download is through and the time that it took to compute (its record ``work``) is over; where it
    is too late the record is taken out. Everything else is control traffic, counted but not timed.
    The channel lives here, at the server, whatever runtime carries the messages.
    """

    def __init__(self, grid: Grid, cell: Cell) -> None:
        self._grid, self.cell = grid, cell
        self.device_of: dict[int, int] = {}
        """device index of each node, once its first report has come"""
        self.deliveries: dict[int, Delivery] = {}
        """what the air did to each device's update of this round, nothing where none was sent"""
        self.uplinks: dict[int, Delivery] = {}
        """the same of the updates that devices sent"""
        self.ready_s: dict[int, float] = {}
        """from the round's start until a device had its own update"""
        self.round_deadline_s: float | None = None
        """from the round's start; what is not up by then is lost (none: all are waited for)"""
        self.start_s = 0.0
        """of the round, in virtual time"""
        self._dropouts: Mapping[int, Dropout] = {}
        self._lost: dict[str, Message] = {}

    def begin_round(
        self,
        round_index: int,
        *,
        start_s: float | None = None,
        dropouts: Mapping[int, Dropout] | None = None,
    ) -> None:
        """Let virtual time go on to a round's begin; without ``start_s`` rounds have a period."""
        self.cell.begin_round(round_index, start_s)
        self.start_s = self.cell.now_s
        self.deliveries = self.cell.transfer(dict.fromkeys(range(self.cell.num_devices), 0))
        self.uplinks, self.ready_s, self._dropouts = {}, {}, dropouts or {}

    def round_s(self) -> float:
        """How long the round took: until the last transfer ended, or was given up."""
        ends = [d.delay_s for d in self.deliveries.values()]
        ends += list(self.ready_s.values())
        ends += [self.ready_s[d] + up.delay_s for d, up in self.uplinks.items()]
        longest = max(ends, default=0.0)
        if self.round_deadline_s is not None:
            longest = min(longest, self.round_deadline_s)
        return longest

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
            self._lost[key] = reply
            ids.append(key)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ids = list(message_ids)
        lost = [self._lost.pop(key) for key in ids if key in self._lost]
        others = [key for key in ids if not key.startswith("lost-")]
        return [*self._received(self._grid.pull_messages(others)), *lost]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        through, lost = self._through_air(list(messages))
        replies = self._grid.send_and_receive(through, timeout=timeout) if through else []
        return [*self._received(replies), *lost]

    def _through_air(self, messages: list[Message]) -> tuple[list[Message], list[Message]]:
        """What reaches its node, and an Error in reply to what does not."""
        through, lost, payloads = [], [], {}
        for message in messages:
            device = self.device_of.get(message.metadata.dst_node_id, -1)
            stage = self._dropouts[device].stage if device in self._dropouts else ""
            is_query = message.metadata.message_type.startswith("query")
            is_gone = stage == "download" and not is_query and "update" not in message.content
            if stage == "before" or is_gone:
                lost.append(_unreachable(message, device))
                continue
            if "update" in message.content:
                payloads[device] = message
            else:
                through.append(message)
        deliveries = self._transfer({d: _payload(m) for d, m in payloads.items()}, "down")
        self.deliveries |= deliveries
        for device, message in payloads.items():
            delivery = deliveries[device]
            if not delivery.is_delivered:
                lost.append(Message(Error(MISSED_DEADLINE, _missed(delivery)), reply_to=message))
                continue
            if delivery.has_bit_error:
                message.content["update"] = _damaged(message)
            through.append(message)
        return through, lost

    def _received(self, replies: Iterable[Message]) -> list[Message]:
        """What gets up: links are put onto reports, updates cross the uplink."""
        answers = []
        for reply in replies:
            if not reply.has_content() or "report" not in reply.content:
                answers.append(reply)
                continue
            device = int(reply.content.metric_records["report"]["device"])  # type: ignore[arg-type]
            known = self.device_of.setdefault(reply.metadata.src_node_id, device)
            if device != known:
                logger.warning("node of device %d says it is device %d: left out", known, device)
                continue
            stage = self._dropouts[device].stage if device in self._dropouts else ""
            if stage == "training" and not reply.metadata.message_type.startswith("query"):
                logger.info("device %d fell silent after its download", device)
                continue
            answers.append(reply)
        self._stamp(answers)
        payloads = {
            self.device_of[m.metadata.src_node_id]: m
            for m in answers
            if m.has_content() and "update" in m.content
        }
        self._through_uplink(payloads)
        return answers

    def _stamp(self, replies: list[Message]) -> None:
        """Put the link that a decision will need onto each report."""
        links: dict[Direction, dict[int, LinkReport]] = {}
        for reply in replies:
            if not reply.has_content() or "report" not in reply.content:
                continue
            device = self.device_of[reply.metadata.src_node_id]
            if "work" in reply.content:
                took_s = float(reply.content.config_records["work"]["compute_s"])  # type: ignore[arg-type]
                self.ready_s[device] = self.deliveries[device].delay_s + max(took_s, 0.0)
                direction: Direction = "up"
            elif reply.metadata.message_type == "query":
                direction = "down"
            else:
                continue
            if direction not in links:
                links[direction] = self._reported_links(direction)
            reply.content["link"] = MetricRecord(dict(asdict(links[direction][device])))

    def _through_uplink(self, payloads: dict[int, Message]) -> None:
        """Send the updates of replies up; what does not arrive is taken out of its message."""
        self.uplinks |= self._transfer({d: _payload(m) for d, m in payloads.items()}, "up")
        for device, message in payloads.items():
            delivery = self.uplinks[device]
            if not delivery.is_delivered:
                logger.info("up: %s", _missed(delivery))
                del message.content["update"]
            elif delivery.has_bit_error:
                message.content["update"] = _damaged(message)

    def _transfer(self, payloads: Mapping[int, bytes], direction: Direction) -> dict[int, Delivery]:
        """Through the cell; a device that drops out meanwhile has had a part on the air."""
        if not payloads:
            return {}
        bits = {device: 8 * len(data) for device, data in payloads.items()}
        stage = "download" if direction == "down" else "upload"
        dropping = {
            d: drop
            for d in bits
            if (drop := self._dropouts.get(d)) is not None and drop.stage == stage
        }
        on_air = {d: int(n * dropping[d].share) if d in dropping else n for d, n in bits.items()}
        if direction == "down":
            deliveries = self.cell.transfer(on_air)
        else:
            ready_s = {d: self.ready_s.get(d, 0.0) for d in bits}
            deliveries = self.cell.transfer(
                on_air,
                direction="up",
                start_s=ready_s,
                begin_s=self.start_s,
                deadline_s=self.uplink_end_s(),
            )
        for d in dropping:
            deliveries[d] = replace(
                deliveries[d], bits=bits[d], delivered_bits=0, is_delivered=False
            )
        return deliveries

    def uplink_end_s(self) -> float:
        """From the round's start until uplinks are given up."""
        last = max(self.ready_s.values(), default=0.0) + self.cell.config.deadline_s
        return last if self.round_deadline_s is None else min(last, self.round_deadline_s)

    def _reported_links(self, direction: Direction) -> dict[int, LinkReport]:
        links = self.cell.reported_links(direction)
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


def _damaged(message: Message) -> ConfigRecord:
    data = bytearray(_payload(message))
    # Any bit will do: the checksum covers them all.
    data[len(data) // 2] ^= 1
    return ConfigRecord({"payload": bytes(data)})


def _missed(delivery: Delivery) -> str:
    return (
        f"device {delivery.device} missed its deadline: {delivery.sent_bits:.0f} of "
        f"{delivery.bits} bits after {delivery.delay_s:g} s"
    )


def _unreachable(message: Message, device: int) -> Message:
    return Message(Error(UNREACHABLE, f"device {device} is not there"), reply_to=message)
