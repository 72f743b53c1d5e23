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

from airllm.lora import Adapter
from airllm.models import BaseModel
from airllm.policy import Importance
from airllm.ranks import ProjectionSpec
from airllm.report import DeviceReport
from airllm.tuning import Head, Metrics
from airllm.worth import pack_worth
from edge.device import Device, DeviceProfile, DeviceState


def make_client_app(
    load: Callable[[Context], tuple[BaseModel, DeviceProfile]],
) -> ClientApp:
    """The app of every device; ``load`` gives the base model and the profile of a node."""
    app = ClientApp()

    def answer(
        message: Message, context: Context, act: Callable[[Device], DeviceReport]
    ) -> Message:
        if "held" not in context.state and message.metadata.message_type != "query.deploy":
            # Its node has come back with nothing: it asks, without a report, to be deployed to.
            return Message(RecordDict(), reply_to=message)
        base, profile = load(context)
        device = Device(base, profile, read_state(context.state, base))
        report = act(device)
        write_state(context.state, device.state)
        record = RecordDict({"report": MetricRecord(dict(report.to_metrics()))})
        return Message(record, reply_to=message)

    @app.query("deploy")
    def deploy(message: Message, context: Context) -> Message:
        base, _ = load(context)
        arrays = message.content.array_records.get("head")
        head = None
        if arrays is not None:
            weight, bias = (torch.from_numpy(a.copy()) for a in arrays.to_numpy_ndarrays())
            head = Head(weight, bias).to(base.device)
        return answer(message, context, lambda device: device.deploy(head))

    @app.query()
    def report(message: Message, context: Context) -> Message:
        return answer(message, context, Device.report)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        records, work = message.content.config_records, ConfigRecord()

        def act(device: Device) -> DeviceReport:
            report = device.report()
            if "update" in records:
                report = device.install(_bytes(records["update"], "payload"))
            if "work" in records:
                asked = records["work"]
                trained = device.train(
                    np.frombuffer(_bytes(asked, "ranks"), np.uint8).astype(np.int64),
                    cast(Importance, asked["importance"]),
                    int(asked["round"]),  # type: ignore[arg-type]
                )
                hardware = device.work.hardware
                work["worth"] = pack_worth(trained.worth)
                work["loss"] = trained.loss
                work["compute_s"] = hardware.compute_s(trained.flops)
                work["compute_j"] = hardware.compute_j(trained.flops)
            return report

        reply = answer(message, context, act)
        if work:
            reply.content["work"] = work
        return reply

    @app.train("send")
    def send(message: Message, context: Context) -> Message:
        grant, update = message.content.config_records["grant"], ConfigRecord()

        def act(device: Device) -> DeviceReport:
            ranks = np.frombuffer(_bytes(grant, "ranks"), np.uint8).astype(np.int64)
            update["payload"] = device.send(ranks, int(grant["number"]))  # type: ignore[arg-type]
            return device.report()

        reply = answer(message, context, act)
        reply.content["update"] = update
        return reply

    return app


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
