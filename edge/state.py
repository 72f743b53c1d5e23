"""A device's state in the records that Flower keeps in its Context between messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from airllm.lora.adapter import Adapter
from airllm.lora.evaluation import Metrics
from airllm.models.base import BaseModel
from airllm.models.head import Head
from airllm.models.projections import ProjectionSpec
from edge.device import DeviceState

_ADAPTER, _NUMBERS, _HEAD, _TRAINED = "adapter", "numbers", "head", "trained"


def is_deployed(store: RecordDict) -> bool:
    """Whether the device has a state; one that has come back with nothing has none."""
    return _ADAPTER in store


def write_state(store: RecordDict, state: DeviceState) -> None:
    """Put a device's state into its store."""
    store[_ADAPTER] = _pack(state.device_adapter)
    numbers: dict[str, int | float] = {"update_number": state.update_number}
    if state.metrics is not None:
        numbers |= {
            "loss": state.metrics.loss,
            "accuracy": state.metrics.accuracy,
            "count": state.metrics.count,
        }
    store[_NUMBERS] = ConfigRecord(dict(numbers))
    if state.head is not None:
        head = [state.head.weight.cpu().numpy(), state.head.bias.cpu().numpy()]
        store[_HEAD] = ArrayRecord(head)
    store.pop(_TRAINED, None)
    if state.trained is not None:
        store[_TRAINED] = _pack(state.trained)


def read_state(store: RecordDict, base: BaseModel) -> DeviceState:
    """The inverse of `write_state`; a device that has no state yet holds nothing."""
    if not is_deployed(store):
        return DeviceState(Adapter.zero(base.specs))
    numbers = store.config_records[_NUMBERS]
    metrics = None
    if "loss" in numbers:
        metrics = Metrics(
            float(cast(float, numbers["loss"])),
            float(cast(float, numbers["accuracy"])),
            int(cast(int, numbers["count"])),
        )
    head = None
    if _HEAD in store:
        weight, bias = (
            torch.from_numpy(np.array(a)) for a in store.array_records[_HEAD].to_numpy_ndarrays()
        )
        head = Head(weight, bias).to(base.device)
    return DeviceState(
        _unpack(store.array_records[_ADAPTER], base.specs),
        int(cast(int, numbers["update_number"])),
        metrics,
        head,
        _unpack(store.array_records[_TRAINED], base.specs) if _TRAINED in store else None,
    )


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
