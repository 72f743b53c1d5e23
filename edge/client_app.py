"""A Flower ClientApp around a Device: messages in, reports out, state in Flower's Context.

Messages: ``query.deploy`` brings the head (out of band, before round 1), ``query`` asks for the
report, ``train`` brings an update's bytes, or the ranks to train at, or both, and ``train.send``
the ranks at which the device's own update is to go up. The device's state lives in
``context.state``, so that any worker process can answer for any device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from numpy.typing import NDArray

from airllm.lora.adapter import Adapter
from airllm.lora.evaluation import Head, Metrics
from airllm.lora.sensitivity import Importance
from airllm.models.base import BaseModel
from airllm.models.projections import ProjectionSpec
from airllm.worth import pack_worth
from edge.device import Device, DeviceProfile, DeviceState
from edge.group import measure, train_all
from edge.local_update import LocalTask, Trained

# Devices in the same passes: more would fill them no better, and each has factors and, where it
# trains, an optimiser of its own in memory. Fewer where what a device may hold is large.
_TOGETHER, _HELD_BYTES = 32, 1 << 30

Load = Callable[[Context], tuple[BaseModel, DeviceProfile]]
"""gives the base model and the profile of a node"""


def make_client_app(load: Load, *, mods: list[Mod] | None = None) -> ClientApp:
    """The app of every device; ``mods`` are Flower's, around each of its answers."""
    app = ClientApp(mods=mods)

    def one(message: Message, context: Context) -> Message:
        return answer(load, [(message, context)])[0]

    app.query("deploy")(one)
    app.query()(one)
    app.train()(one)
    app.train("send")(one)
    return app


def answer_together(load: Load, asked: Sequence[tuple[Message, Context]]) -> list[Message]:
    """Answer messages to many nodes of one process, some dozens at a time (`answer`).

    They go by node, whatever order they come in: who is in a pass with whom moves last digits.
    """
    order = sorted(range(len(asked)), key=lambda i: asked[i][1].node_id)
    size = _group_size(*load(asked[0][1])) if asked else 1
    replies: dict[int, Message] = {}
    for first in range(0, len(order), size):
        places = order[first : first + size]
        replies |= dict(zip(places, answer(load, [asked[i] for i in places]), strict=True))
    return [replies[i] for i in range(len(asked))]


def _group_size(base: BaseModel, profile: DeviceProfile) -> int:
    """How many devices are answered together; depends on nothing but the configuration."""
    ranks = [min(profile.hold_rank, s.in_features, s.out_features) for s in base.specs]
    held = 4 * sum(r * s.params_per_rank for r, s in zip(ranks, base.specs, strict=True))
    return max(1, min(_TOGETHER, _HELD_BYTES // max(held, 1)))


def answer(load: Load, asked: Sequence[tuple[Message, Context]]) -> list[Message]:
    """Answer messages to as many nodes; what several have to compute goes through the same passes.

    One message's answer is the same in every runtime, to the last bit; that of several differs from
    it by the order of sums.
    """
    calls = {
        i: _Call(load, message, context)
        for i, (message, context) in enumerate(asked)
        # A node that has come back with nothing asks, without a report, to be deployed to.
        if "held" in context.state or message.metadata.message_type == "query.deploy"
    }
    for call in calls.values():
        call.receive()
    measure([call.device for call in calls.values()])
    training = [(call, task) for call in calls.values() if (task := call.task()) is not None]
    trained = train_all([call.device for call, _ in training], [task for _, task in training])
    for (call, _), own in zip(training, trained, strict=True):
        call.trained = own
    return [
        Message(calls[i].reply() if i in calls else RecordDict(), reply_to=message)
        for i, (message, _) in enumerate(asked)
    ]


class _Call:
    """A message to a device, until it is answered."""

    def __init__(self, load: Load, message: Message, context: Context) -> None:
        base, profile = load(context)
        self._context, self._kind = context, message.metadata.message_type
        self._content = message.content
        self.device = Device(base, profile, read_state(context.state, base))
        self.trained: Trained | None = None
        self._is_installed = False

    def receive(self) -> None:
        """Take in what came with it."""
        if self._kind == "query.deploy":
            arrays = self._content.array_records.get("head")
            head = None
            if arrays is not None:
                weight, bias = (torch.from_numpy(a.copy()) for a in arrays.to_numpy_ndarrays())
                head = Head(weight, bias).to(self.device.base.device)
            self.device.deploy(head)
        elif self._kind == "train" and "update" in self._content.config_records:
            data = _bytes(self._content.config_records["update"], "payload")
            self._is_installed = self.device.install(data)

    def task(self) -> LocalTask | None:
        """What it asks to train, if it asks."""
        if self._kind != "train" or "work" not in self._content.config_records:
            return None
        asked = self._content.config_records["work"]
        return self.device.task(
            _ranks(asked),
            cast(Importance, asked["importance"]),
            int(asked["round"]),  # type: ignore[arg-type]
        )

    def reply(self) -> RecordDict:
        """The answer's records; the device's state goes back to Flower's."""
        device, content = self.device, RecordDict()
        report = device.report(is_installed=self._is_installed)
        content["report"] = MetricRecord(dict(report.to_metrics()))
        if self.trained is not None:
            hardware, flops = device.work.hardware, self.trained.flops
            content["work"] = ConfigRecord(
                {
                    "worth": pack_worth(self.trained.worth),
                    "loss": self.trained.loss,
                    "compute_s": hardware.compute_s(flops),
                    "compute_j": hardware.compute_j(flops),
                }
            )
        if self._kind == "train.send":
            grant = self._content.config_records["grant"]
            payload = device.send(_ranks(grant), int(grant["number"]))  # type: ignore[arg-type]
            content["update"] = ConfigRecord({"payload": payload})
        write_state(self._context.state, device.state)
        return content


def _ranks(record: ConfigRecord) -> NDArray[np.int64]:
    return np.frombuffer(_bytes(record, "ranks"), np.uint8).astype(np.int64)


def _bytes(record: ConfigRecord, key: str) -> bytes:
    data = record[key]
    if not isinstance(data, bytes):
        raise TypeError(f"{key} of a message must be bytes, got {type(data).__name__}")
    return data


def write_state(store: RecordDict, state: DeviceState) -> None:
    """Put a device's state into the records that Flower keeps between messages."""
    store["held"] = _pack(state.held)
    numbers: dict[str, int | float] = {"update_number": state.update_number}
    if state.metrics is not None:
        numbers |= {
            "loss": state.metrics.loss,
            "accuracy": state.metrics.accuracy,
            "count": state.metrics.count,
        }
    store["numbers"] = ConfigRecord(dict(numbers))
    if state.head is not None:
        head = [state.head.weight.cpu().numpy(), state.head.bias.cpu().numpy()]
        store["head"] = ArrayRecord(head)
    store.pop("trained", None)
    if state.trained is not None:
        store["trained"] = _pack(state.trained)


def _pack(adapter: Adapter) -> ArrayRecord:
    """Ranks, and all factors end to end: many small arrays would cost more than the numbers."""
    factors = [f.reshape(-1) for pair in zip(adapter.down, adapter.up, strict=True) for f in pair]
    return ArrayRecord([adapter.ranks, torch.cat(factors).numpy()])


def _unpack(record: ArrayRecord, specs: Sequence[ProjectionSpec]) -> Adapter:
    ranks, numbers = record.to_numpy_ndarrays()
    shapes = [
        shape
        for spec, r in zip(specs, ranks.tolist(), strict=True)
        for shape in ((r, spec.in_features), (spec.out_features, r))
    ]
    pieces = torch.from_numpy(np.array(numbers)).split([rows * columns for rows, columns in shapes])
    factors = [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]
    return Adapter(tuple(factors[0::2]), tuple(factors[1::2]))


def read_state(store: RecordDict, base: BaseModel) -> DeviceState:
    """The inverse of `write_state`; a device that has no state yet holds nothing."""
    if "held" not in store:
        return DeviceState(Adapter.zero(base.specs))
    numbers = store.config_records["numbers"]
    metrics = None
    if "loss" in numbers:
        metrics = Metrics(
            float(numbers["loss"]),  # type: ignore[arg-type]
            float(numbers["accuracy"]),  # type: ignore[arg-type]
            int(numbers["count"]),  # type: ignore[arg-type]
        )
    head = None
    if "head" in store:
        weight, bias = (
            torch.from_numpy(np.array(a)) for a in store.array_records["head"].to_numpy_ndarrays()
        )
        head = Head(weight, bias).to(base.device)
    return DeviceState(
        _unpack(store.array_records["held"], base.specs),
        int(numbers["update_number"]),  # type: ignore[arg-type]
        metrics,
        head,
        _unpack(store.array_records["trained"], base.specs) if "trained" in store else None,
    )
