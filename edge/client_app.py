"""A Flower ClientApp around a Device: messages in, reports out, state in Flower's Context.

`airllm.protocol` has the messages. The device's state lives in ``context.state``, so that any
worker process can answer for any device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod

from airllm.models.base import BaseModel
from airllm.protocol import (
    Deployment,
    Download,
    Grant,
    Reply,
    TrainingReport,
    pack_utility,
    request_of,
)
from edge.device import Device, DeviceProfile, measure
from edge.local_update import LocalTask, Trained, train
from edge.state import is_deployed, read_state, write_state

# Devices in the same passes: more would fill them no better, and each has factors and, where it
# trains, an optimiser of its own in memory. Fewer where what a device may hold is large.
_TOGETHER, _ADAPTER_BYTES = 32, 1 << 30

Load = Callable[[Context], tuple[BaseModel, DeviceProfile]]
"""gives the base model and the profile of a node"""


def make_client_app(load: Load, *, mods: list[Mod] | None = None) -> ClientApp:
    """The app of every device; ``mods`` are Flower's, around each of its answers."""
    app = ClientApp(mods=mods)

    def one(message: Message, context: Context) -> Message:
        return answer(load, [(message, context)])[0]

    # The kinds of `airllm.protocol`: query.deploy, query, train, train.send.
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
    ranks = [min(profile.adapter_rank, s.in_features, s.out_features) for s in base.specs]
    adapter_bytes = 4 * sum(r * s.params_per_rank for r, s in zip(ranks, base.specs, strict=True))
    return max(1, min(_TOGETHER, _ADAPTER_BYTES // max(adapter_bytes, 1)))


def answer(load: Load, asked: Sequence[tuple[Message, Context]]) -> list[Message]:
    """Answer messages to as many nodes; what several have to compute goes through the same passes.

    One message's answer is the same in every runtime, to the last bit; that of several differs from
    it by the order of sums.
    """
    calls = {
        i: _Call(load, message, context)
        for i, (message, context) in enumerate(asked)
        # A node that has come back with nothing asks, without a report, to be deployed to.
        if is_deployed(context.state) or message.metadata.message_type == Deployment.kind
    }
    for call in calls.values():
        call.receive()
    measure([call.device for call in calls.values()])
    if training := {call: task for call in calls.values() if (task := call.task()) is not None}:
        device = next(iter(training)).device
        trained = train(device.base, device.state.head, list(training.values()))
        for call, own in zip(training, trained, strict=True):
            call.trained = own
    return [
        Message(calls[i].reply() if i in calls else RecordDict(), reply_to=message)
        for i, (message, _) in enumerate(asked)
    ]


class _Call:
    """A message to a device, until it is answered."""

    def __init__(self, load: Load, message: Message, context: Context) -> None:
        base, profile = load(context)
        self._context = context
        self._request = request_of(message.metadata.message_type, message.content)
        self.device = Device(base, profile, read_state(context.state, base))
        self.trained: Trained | None = None
        self._is_installed = False

    def receive(self) -> None:
        """Take in what came with it."""
        match self._request:
            case Deployment(head):
                self.device.deploy(None if head is None else head.to(self.device.base.device))
            case Download(payload) if payload:
                self._is_installed = self.device.install(payload)

    def task(self) -> LocalTask | None:
        """What it asks to train, if it asks."""
        match self._request:
            case Download(order=order) if order is not None:
                return self.device.task(order.ranks, order.importance, order.round_index)
        return None

    def reply(self) -> RecordDict:
        """The answer's records; the device's state goes back to Flower's."""
        device, training, payload = self.device, None, None
        report = device.report(is_installed=self._is_installed)
        if self.trained is not None:
            device.take_trained(self.trained)
            hardware, flops = device.work.hardware, self.trained.flops
            training = TrainingReport(
                pack_utility(self.trained.utility),
                hardware.compute_s(flops),
                hardware.compute_j(flops),
            )
        if isinstance(self._request, Grant):
            payload = device.send(self._request.ranks, self._request.number)
        write_state(self._context.state, device.state)
        return Reply(report, training, payload).to_records()
