"""A Flower ClientApp around a Device: messages in, reports out, state in Flower's Context.

Messages: ``query.deploy`` brings the head (out of band, before round 1), ``query`` asks for the
report, ``train`` brings an update's bytes. The device's state lives in ``context.state``, so that
any worker process can answer for any device.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from airllm.lora import Adapter
from airllm.models import BaseModel
from airllm.report import DeviceReport
from airllm.tuning import Head, Metrics
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
    def install(message: Message, context: Context) -> Message:
        data = message.content.config_records["update"]["payload"]
        if not isinstance(data, bytes):
            raise TypeError(f"an update's payload must be bytes, got {type(data).__name__}")
        return answer(message, context, lambda device: device.install(data))

    return app


def write_state(store: RecordDict, state: DeviceState) -> None:
    """Put a device's state into the records that Flower keeps between messages."""
    arrays = [f.numpy() for pair in zip(state.held.down, state.held.up, strict=True) for f in pair]
    store["held"] = ArrayRecord(arrays)
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


def read_state(store: RecordDict, base: BaseModel) -> DeviceState:
    """The inverse of `write_state`; a device that has no state yet holds nothing."""
    if "held" not in store:
        return DeviceState(Adapter.zero(base.specs))
    arrays = [
        torch.from_numpy(np.array(a)) for a in store.array_records["held"].to_numpy_ndarrays()
    ]
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
    held = Adapter(tuple(arrays[0::2]), tuple(arrays[1::2]))
    return DeviceState(held, int(numbers["update_number"]), metrics, head)  # type: ignore[arg-type]
