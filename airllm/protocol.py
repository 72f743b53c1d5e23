"""Every message that crosses the wire, as a frozen record, and its form in Flower's records.

Server to device: `Deployment`, `Query`, `Download`, `Grant`. Device to server: `Reply`. This file
alone names Flower's records, and is the only one of ``airllm`` that knows Flower.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from airllm.lora.sensitivity import Importance
from airllm.models.head import Head

_DAY_S = 86_400.0
_HEAD, _UPDATE, _WORK, _GRANT, _REPORT = "head", "update", "work", "grant", "report"


@dataclass(frozen=True, slots=True)
class Deployment:
    """What a device is given out of band, before its first round."""

    kind: ClassVar[str] = "query.deploy"
    head: Head | None
    """the classification head, where the model has one"""

    def to_records(self) -> RecordDict:
        if self.head is None:
            return RecordDict()
        arrays = [self.head.weight.cpu().numpy(), self.head.bias.cpu().numpy()]
        return RecordDict({_HEAD: ArrayRecord(arrays)})

    @staticmethod
    def of_records(records: RecordDict) -> Deployment:
        arrays = records.array_records.get(_HEAD)
        if arrays is None:
            return Deployment(None)
        weight, bias = (torch.from_numpy(a.copy()) for a in arrays.to_numpy_ndarrays())
        return Deployment(Head(weight, bias))


@dataclass(frozen=True, slots=True)
class Query:
    """Asks a device for its report."""

    kind: ClassVar[str] = "query"

    def to_records(self) -> RecordDict:
        return RecordDict()

    @staticmethod
    def of_records(records: RecordDict) -> Query:
        return Query()


@dataclass(frozen=True, slots=True)
class TrainingOrder:
    """What a device is to train in a round (federated mode)."""

    ranks: NDArray[np.int64]
    """[projections]"""
    importance: Importance
    """by which components of what comes of it are ordered"""
    round_index: int


@dataclass(frozen=True, slots=True)
class Download:
    """An update's bytes, or an order to train, or both."""

    kind: ClassVar[str] = "train"
    payload: bytes = b""
    """(`airllm.lora.payload`); empty: nothing is sent"""
    order: TrainingOrder | None = None

    def to_records(self) -> RecordDict:
        records = RecordDict()
        if self.payload:
            records[_UPDATE] = ConfigRecord({"payload": self.payload})
        if self.order is not None:
            records[_WORK] = ConfigRecord(
                {
                    "ranks": _rank_bytes(self.order.ranks),
                    "importance": self.order.importance,
                    "round": self.order.round_index,
                }
            )
        return records

    @staticmethod
    def of_records(records: RecordDict) -> Download:
        configs = records.config_records
        payload = _own_bytes(configs[_UPDATE], "payload") if _UPDATE in configs else b""
        order = None
        if _WORK in configs:
            work = configs[_WORK]
            importance = cast(Importance, work["importance"])
            order = TrainingOrder(
                ranks_of(_own_bytes(work, "ranks")), importance, _int(work, "round")
            )
        return Download(payload, order)


@dataclass(frozen=True, slots=True)
class Grant:
    """Allows a device to send the update that it has trained, at these ranks."""

    kind: ClassVar[str] = "train.send"
    ranks: NDArray[np.int64]
    """[projections]"""
    number: int
    """of the update"""

    def to_records(self) -> RecordDict:
        grant = ConfigRecord({"ranks": _rank_bytes(self.ranks), "number": self.number})
        return RecordDict({_GRANT: grant})

    @staticmethod
    def of_records(records: RecordDict) -> Grant:
        grant = records.config_records[_GRANT]
        return Grant(ranks_of(_own_bytes(grant, "ranks")), _int(grant, "number"))


Request = Deployment | Query | Download | Grant
_REQUESTS: dict[str, type[Request]] = {
    each.kind: each for each in (Deployment, Query, Download, Grant)
}


def request_of(kind: str, records: RecordDict) -> Request:
    """What a device was asked, by the message's type."""
    return _REQUESTS[kind].of_records(records)


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """One device's state with the adapter it holds; the link is not its own to report."""

    device: int
    """index of the device, 0..num_devices - 1"""
    entropy: float
    """normalised token entropy of its text, 0..1"""
    oov_rate: float
    """share of its words that the reference vocabulary does not have, 0..1"""
    num_examples: int
    loss: float
    """cross-entropy in nats with the adapter it holds"""
    accuracy: float
    update_number: int
    """number of the last update it installed; 0: none yet"""
    is_installed: bool = False
    """True when the update this answers was intact and is now in use"""

    def to_metrics(self) -> dict[str, int | float]:
        """Plain numbers, as a Flower MetricRecord takes them."""
        return {key: int(v) if isinstance(v, bool) else v for key, v in asdict(self).items()}

    @staticmethod
    def from_metrics(metrics: Mapping[str, object]) -> DeviceReport:
        """The inverse of `to_metrics`; raises ValueError when a field is missing."""
        missing = [f.name for f in fields(DeviceReport) if f.name not in metrics]
        if missing:
            raise ValueError(f"a device's report lacks {', '.join(missing)}")
        kinds = {"int": int, "float": float, "bool": bool}
        return DeviceReport(
            **{f.name: kinds[str(f.type)](metrics[f.name]) for f in fields(DeviceReport)}
        )


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What a device says of the update that it has trained, before it may send it."""

    utility: bytes
    """of the update's components (`pack_utility`)"""
    compute_s: float
    """virtual time that training took"""
    compute_j: float
    """energy that training took"""


@dataclass(frozen=True, slots=True)
class Reply:
    """A device's answer to any request."""

    report: DeviceReport
    training: TrainingReport | None = None
    """to an order to train"""
    payload: bytes | None = None
    """the device's own update, to a grant"""

    def to_records(self) -> RecordDict:
        records = RecordDict({_REPORT: MetricRecord(dict(self.report.to_metrics()))})
        if self.training is not None:
            records[_WORK] = ConfigRecord(dict(asdict(self.training)))
        if self.payload is not None:
            records[_UPDATE] = ConfigRecord({"payload": self.payload})
        return records

    @staticmethod
    def of_records(records: RecordDict) -> Reply | None:
        """None where there is no report: the device has lost its state, or was never deployed to.

        What a device sends is not trusted. A number that cannot be counts as 0, what should be
        bytes and is not as none; raises ValueError for what is no reply at all.
        """
        if _REPORT not in records:
            return None
        try:
            report = DeviceReport.from_metrics(dict(records.metric_records[_REPORT]))
        except (TypeError, KeyError, OverflowError) as error:
            raise ValueError(f"no proper report: {error}") from None
        for name in (_WORK, _UPDATE):
            if name in records and name not in records.config_records:
                raise ValueError(f"record {name!r} must be a ConfigRecord")
        training, payload = None, None
        if _WORK in records:
            work = records.config_records[_WORK]
            training = TrainingReport(
                _bytes(work, "utility"), _number(work, "compute_s"), _number(work, "compute_j")
            )
            if training.compute_s > _DAY_S:
                raise ValueError("it says to have computed for more than a day")
        if _UPDATE in records:
            payload = _bytes(records.config_records[_UPDATE], "payload")
        return Reply(report, training, payload)


def pack_utility(utility: NDArray[np.float64]) -> bytes:
    """Bytes of a table [projections, rank]: the upper half of each float32 (bf16), which keeps its
    range."""
    words = np.ascontiguousarray(utility, dtype="<f4").view("<u4")
    return bytes((words >> 16).astype("<u2").tobytes())


def unpack_utility(data: bytes, num_projections: int) -> NDArray[np.float64]:
    """The inverse of `pack_utility`; raises ValueError for bytes that are no table of numbers."""
    if len(data) % (2 * num_projections):
        raise ValueError(f"{len(data)} bytes are no table with {num_projections} rows")
    words = np.frombuffer(data, "<u2").astype("<u4") << 16
    utility = words.view("<f4").astype(float).reshape(num_projections, -1)
    if not np.isfinite(utility).all():
        raise ValueError("a component's utility is not a number")
    return utility


def ranks_of(data: bytes) -> NDArray[np.int64]:
    """Ranks [projections] of their bytes on the wire, one each."""
    return np.frombuffer(data, np.uint8).astype(np.int64)


def _rank_bytes(ranks: NDArray[np.int64]) -> bytes:
    return bytes(ranks.astype(np.uint8))


def _own_bytes(record: ConfigRecord, key: str) -> bytes:
    """Bytes that the server sent."""
    data = record[key]
    if not isinstance(data, bytes):
        raise TypeError(f"{key} of a message must be bytes, got {type(data).__name__}")
    return data


def _int(record: ConfigRecord, key: str) -> int:
    return int(cast(int, record[key]))


def _bytes(record: ConfigRecord, key: str) -> bytes:
    """Bytes that a device sent; none for anything else."""
    value = record.get(key)
    return value if isinstance(value, bytes) else b""


def _number(record: ConfigRecord, key: str) -> float:
    """A number >= 0 that a device sent; 0 for anything else."""
    value: Any = record.get(key)
    is_good = isinstance(value, int | float) and np.isfinite(value)
    return max(float(value), 0.0) if is_good else 0.0
