"""Flower's Grid with the air in it: where messages meet SimPy's channel."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace

import numpy as np
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from airllm.report import DeviceReport
from channel.cell import Cell
from channel.delivery import Delivery, Direction
from channel.energy import transmit_energy_j
from channel.units import db_to_linear
from cloud.clients.participation import Dropout
from cloud.grids.grid_around import GridAround
from cloud.planning.downlink import LinkReport

logger = logging.getLogger(__name__)

# Flower's own error codes are below 100.
MISSED_DEADLINE, UNREACHABLE = 1000, 1001
_DAY_S = 86_400.0
_FOREIGN = "an AirGrid carries AirLLM's own messages: give other apps a ChannelGrid"


class AirGrid(GridAround):
    """Decorates a Grid of AirLLM's own apps: updates cross the cell, reports come back with the
    link on them. For anyone else's apps there is `cloud.grids.channel_grid.ChannelGrid`.

    A message with a record ``update`` is sent over the air: in time, its bytes go on to the node
    (with a bit flipped where the link let an error through); too late, the node never hears of it
    and the reply is an Error. A reply with such a record crosses the uplink, once its device's
    download is through and the time that it took to compute (its record ``work``) is over; where it
    is too late it is left out; since devices share the band, this waits for `carry_up`. Everything
    else is control traffic, counted but not timed. The channel lives here, at the server, whatever
    runtime carries the messages.
    """

    def __init__(
        self,
        grid: Grid,
        cell: Cell,
        *,
        round_deadline_s: float | None = None,
        air_threshold_db: float | None = None,
        is_timed: bool = True,
    ) -> None:
        """``round_deadline_s`` is from a round's start; what is not up by then is lost (None: all
        are waited for). With ``air_threshold_db`` updates come up all at once, as analog symbols,
        from those whose SNR is above it. With ``is_timed`` False the caller times transfers, and
        all passes."""
        super().__init__(grid)
        self.cell, self.round_deadline_s = cell, round_deadline_s
        self._air_threshold_db, self._is_timed = air_threshold_db, is_timed
        self.device_of: dict[int, int] = {}
        """device index of each node, once its first report has come"""
        self.deliveries: dict[int, Delivery] = {}
        """what the air did to each device's update of this round, nothing where none was sent"""
        self.uplinks: dict[int, Delivery] = {}
        """the same of the updates that devices sent"""
        self.ready_s: dict[int, float] = {}
        """from the round's start until a device had its own update"""
        self.superposed_snr_db: NDArray[np.float64] | None = None
        """[devices] of the uplinks when symbols came up all at once, if they did in this round"""
        self.unreached: set[int] = set()
        """devices that a message of this round did not reach, or whose answer was lost"""
        self.start_s = 0.0
        """of the round, in virtual time"""
        self._dropouts: Mapping[int, Dropout] = {}
        self._lost: dict[str, Message] = {}
        self._num_lost = 0

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
        self.superposed_snr_db = None
        self.unreached = set()

    def round_s(self) -> float:
        """How long the round took: until the last transfer ended, or was given up."""
        ends = [d.delay_s for d in self.deliveries.values()]
        ends += list(self.ready_s.values())
        ends += [self.ready_s[d] + up.delay_s for d, up in self.uplinks.items()]
        longest = max(ends, default=0.0)
        if self.round_deadline_s is not None:
            longest = min(longest, self.round_deadline_s)
        return longest

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        fates = self._through_air(list(messages))
        pushed = iter(self._grid.push_messages([fate for fate in fates if not fate.has_error()]))
        # A grid that a push failed on gives fewer ids, or empty ones.
        ids = [self._keep(fate) if fate.has_error() else next(pushed, "") for fate in fates]
        return [key for key in ids if key]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ids = list(message_ids)
        lost = [self._lost.pop(key) for key in ids if key in self._lost]
        others = [key for key in ids if not key.startswith("lost-")]
        return [*self._received(self._grid.pull_messages(others)), *lost]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        fates = self._through_air(list(messages))
        through = [fate for fate in fates if not fate.has_error()]
        replies = self._grid.send_and_receive(through, timeout=timeout) if through else []
        return [*self._received(replies), *(fate for fate in fates if fate.has_error())]

    def _keep(self, reply: Message) -> str:
        """Under which id the Error in reply to a lost message can be pulled."""
        key = f"lost-{self._num_lost}"
        self._num_lost += 1
        reply.metadata.__dict__["_reply_to_message_id"] = key  # as of any other reply
        self._lost[key] = reply
        return key

    def _through_air(self, messages: list[Message]) -> list[Message]:
        """For each message, in their order, what its node gets of it, or the Error in reply."""
        if not self._is_timed:
            return messages
        fates, payloads = dict[int, Message](), dict[int, tuple[int, bytes]]()
        for place, message in enumerate(messages):
            device = self.device_of.get(message.metadata.dst_node_id, -1)
            stage = self._stage(device)
            is_query = message.metadata.message_type.startswith("query")
            is_gone = stage == "download" and not is_query and "update" not in message.content
            if stage == "before" or is_gone:
                fates[place] = _unreachable(message, device)
                self.unreached.add(device)
            elif "update" not in message.content:
                if message.content.array_records and not is_query:
                    raise ValueError(_FOREIGN)
                fates[place] = message
            elif device in payloads:
                raise ValueError(f"device {device} was sent two updates at once; send one a push")
            else:
                payloads[device] = place, _payload(message, device)
        deliveries = self._transfer({d: data for d, (_, data) in payloads.items()}, "down")
        self.deliveries |= deliveries
        for device, (place, data) in payloads.items():
            delivery, message = deliveries[device], messages[place]
            if not delivery.is_delivered:
                error = Error(MISSED_DEADLINE, _missed(delivery))
                fates[place] = Message(error, reply_to=message)
                self.unreached.add(device)
                continue
            if delivery.has_bit_error:
                # Several messages may have the same content: only this one is damaged.
                update = ConfigRecord({"payload": damaged(data)})
                message.content = RecordDict({**message.content, "update": update})
            fates[place] = message
        return [fates[place] for place in range(len(messages))]

    def carry_up(
        self, replies: Mapping[int, Message], symbols: Mapping[int, int]
    ) -> dict[int, bytes]:
        """Let the updates in ``replies`` [by device], all of a round, cross the uplink; what
        arrives of them. ``symbols`` are the numbers in each, for analog transmission."""
        payloads = {}
        for device, reply in replies.items():
            if "update" in reply.content:
                # What is no string of bytes has no length on the air; the cloud will refuse it.
                payloads[device] = bytes_of(reply.content.config_records["update"], "payload")
        if self._air_threshold_db is None:
            self.uplinks |= self._transfer(payloads, "up")
        else:
            self.uplinks |= self._superpose({d: symbols[d] for d in payloads})
        arrived = {}
        for device, data in payloads.items():
            delivery = self.uplinks[device]
            if not delivery.is_delivered:
                logger.info("up: %s", _missed(delivery))
            else:
                arrived[device] = damaged(data) if delivery.has_bit_error else data
        return arrived

    def _received(self, replies: Iterable[Message]) -> list[Message]:
        """What gets through of answers: what makes no sense, and what a device that drops out
        would have said, is emptied."""
        answers = list(replies)
        for reply in answers:
            if not reply.has_content() or "report" not in reply.content:
                continue
            try:
                device = self._speaker(reply.content)
            except (ValueError, TypeError, KeyError, OverflowError) as error:
                logger.warning("answer of node %d left out: %s", reply.metadata.src_node_id, error)
                reply.content = RecordDict()
                continue
            known = self.device_of.setdefault(reply.metadata.src_node_id, device)
            is_query = reply.metadata.message_type.startswith("query")
            if device != known:
                logger.warning("node of device %d says it is device %d: left out", known, device)
                reply.content = RecordDict()
            elif self._stage(device) == "training" and not is_query:
                logger.info("device %d fell silent after its download", device)
                self.unreached.add(device)
                reply.content = RecordDict()
        if self._is_timed:
            self._stamp([a for a in answers if a.has_content() and "report" in a.content])
        return answers

    def _speaker(self, content: RecordDict) -> int:
        """The device that an answer says it is from, if the answer is what one may be."""
        device = DeviceReport.from_metrics(content.metric_records["report"]).device
        for name in ("work", "update"):
            if name in content and name not in content.config_records:
                raise TypeError(f"record {name!r} must be a ConfigRecord")
        if self._is_timed and "work" in content and device not in self.deliveries:
            raise ValueError("work was not asked for")
        if "work" in content and number_of(content.config_records["work"], "compute_s") > _DAY_S:
            raise ValueError("it says to have computed for more than a day")
        return device

    def _stage(self, device: int) -> str:
        return self._dropouts[device].stage if device in self._dropouts else ""

    def _stamp(self, replies: list[Message]) -> None:
        """Put the link that a decision will need onto each report."""
        stamped: list[tuple[Message, Direction]] = []
        for reply in replies:
            if "work" in reply.content:
                device = self.device_of[reply.metadata.src_node_id]
                took_s = number_of(reply.content.config_records["work"], "compute_s")
                self.ready_s[device] = self.deliveries[device].delay_s + took_s
                stamped.append((reply, "up"))
            elif reply.metadata.message_type == "query":
                stamped.append((reply, "down"))
        links = {way: self._reported_links(way) for way in {way for _, way in stamped}}
        for reply, way in stamped:
            link = links[way][self.device_of[reply.metadata.src_node_id]]
            reply.content["link"] = MetricRecord(dict(asdict(link)))

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

    def _superpose(self, symbols: Mapping[int, int]) -> dict[int, Delivery]:
        """All at once, as soon as the last is ready: two real symbols a channel use.

        Bits are no measure here: what counts as bits is the number of symbols. A device whose SNR
        is too low to invert its channel is silent, and so is one that drops out. Who is heard
        arrives with the SNR of the threshold, and radiates only as much as that takes.
        """
        config = self.cell.config
        air_s = max(symbols.values(), default=0) / (2.0 * config.bandwidth_hz)
        start_s = max((self.ready_s.get(d, 0.0) for d in symbols), default=0.0)
        snr_db = self.cell.true_links("up", self.start_s + start_s).snr_db
        self.superposed_snr_db = snr_db
        is_in_time = start_s + air_s <= self.uplink_end_s()
        threshold_db, found = float(self._air_threshold_db or 0.0), {}
        for d, count in symbols.items():
            is_heard = bool(is_in_time and snr_db[d] >= threshold_db)
            is_heard = is_heard and self._stage(d) != "upload"
            sent_s, waited_s = air_s * is_heard, start_s - self.ready_s.get(d, 0.0)
            surplus = float(db_to_linear(snr_db[d] - threshold_db))
            power_w = self.cell.transmit_power_w / max(surplus, 1.0)
            found[d] = Delivery(
                device=d, bits=count, sent_bits=float(count * is_heard),
                delivered_bits=count * is_heard, delay_s=waited_s + sent_s,
                air_s=sent_s, energy_j=transmit_energy_j(config.energy, sent_s, power_w),
                is_delivered=is_heard, has_bit_error=False,
            )  # fmt: skip
        return found

    def uplink_end_s(self) -> float:
        """From the round's start until uplinks are given up."""
        last = max(self.ready_s.values(), default=0.0) + self.cell.config.deadline_s
        return last if self.round_deadline_s is None else min(last, self.round_deadline_s)

    def _reported_links(self, direction: Direction) -> dict[int, LinkReport]:
        """Of the round's start, or for an update of when it is ready."""
        devices = range(self.cell.num_devices)
        ready_s = np.array(
            [self.ready_s.get(d, 0.0) if direction == "up" else 0.0 for d in devices]
        )
        if self.round_deadline_s is not None:
            ready_s = np.minimum(ready_s, self.round_deadline_s)  # who is later sends nothing
        links = self.cell.reported_links(direction, ready_s)
        planned_bps = self.cell.planned_rate_bps(links)
        return {
            device: LinkReport(link.snr_db, link.bandwidth_hz, float(planned_bps[device]))
            for device, link in enumerate(links)
        }


def _payload(message: Message, device: int) -> bytes:
    if device < 0:
        raise ValueError(
            f"node {message.metadata.dst_node_id} has not said which device it is; query it before "
            "it is sent an update"
        )
    data = message.content.config_records.get("update", ConfigRecord()).get("payload")
    if not isinstance(data, bytes):
        raise TypeError(
            "an update must be a ConfigRecord with bytes as its 'payload', got "
            f"{type(message.content['update']).__name__}; {_FOREIGN}"
        )
    return data


def bytes_of(record: ConfigRecord, key: str) -> bytes:
    """Bytes that a device sent; none for anything else."""
    value = record.get(key)
    return value if isinstance(value, bytes) else b""


def number_of(record: ConfigRecord, key: str) -> float:
    """A number >= 0 that a device sent; 0 for anything else."""
    value = record.get(key)
    is_good = isinstance(value, int | float) and np.isfinite(value)
    return max(float(value), 0.0) if is_good else 0.0  # type: ignore[arg-type]


def damaged(payload: bytes) -> bytes:
    """A payload with an error in it."""
    data = bytearray(payload)
    # Any bit will do: the checksum covers them all.
    data[len(data) // 2] ^= 1
    return bytes(data)


def _missed(delivery: Delivery) -> str:
    return (
        f"device {delivery.device} missed its deadline: {delivery.sent_bits:.0f} of "
        f"{delivery.bits} bits after {delivery.delay_s:g} s"
    )


def _unreachable(message: Message, device: int) -> Message:
    return Message(Error(UNREACHABLE, f"device {device} is not there"), reply_to=message)
