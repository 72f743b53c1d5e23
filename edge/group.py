"""Devices of one process: measured and trained alone, or all in the same passes."""

from __future__ import annotations

from collections.abc import Sequence

from airllm.lora.adapter import Adapter
from airllm.lora.evaluation import Metrics
from airllm.lora.multi_lora import Fleet, Member
from edge.device import Device
from edge.local_update import LocalTask, Trained, train, train_together


def measure(devices: Sequence[Device]) -> None:
    """Measure, in the same passes, all devices that have changed since they last were.

    One alone is left to measure by itself when it reports. All have the same base and head.
    """
    waiting = [device for device in devices if device.state.metrics is None]
    if len(waiting) < 2:
        return
    base, head = waiting[0].base, waiting[0].state.head
    nothing = Adapter.zero(base.specs)
    examples = [device.profile.examples for device in waiting]
    # A device's adapter is not trained here: frozen, it has neither gradients nor an optimiser.
    members = [Member(nothing, 0.0, frozen=device.state.device_adapter) for device in waiting]
    with Fleet(base, head, members) as fleet:
        loss, right = (found.tolist() for found in fleet.evaluate(examples))
    for place, (device, own) in enumerate(zip(waiting, examples, strict=True)):
        count = own.num_terms(is_causal=base.config.task == "causal")
        if not count:
            raise ValueError("evaluation needs at least one example")
        device.take_metrics(Metrics(loss[place], right[place] / count, count))


def train_all(devices: Sequence[Device], tasks: Sequence[LocalTask]) -> list[Trained]:
    """What each device's task comes to; one alone trains by itself, more in the same passes."""
    if not devices:
        return []
    base, head = devices[0].base, devices[0].state.head
    if len(devices) == 1:
        trained = [train(base, head, tasks[0])]
    else:
        trained = train_together(base, head, tasks)
    for device, own in zip(devices, trained, strict=True):
        device.take_trained(own)
    return trained
