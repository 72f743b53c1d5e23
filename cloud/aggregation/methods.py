"""The federated section of a configuration, and published methods by name as its presets."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import pydantic.dataclasses
from pydantic import Field

from airllm.bounds import (
    NUMPY,
    STRICT,
    Count,
    CountOrZero,
    Decibel,
    NonNegative,
    Positive,
    Several,
    Share,
)
from cloud.aggregation.aggregate import AGGREGATORS
from cloud.aggregation.robust import ROBUST

FACTORED = ("zero-padding", "naive", "frozen-a", "trimmed", "aircomp")
"""aggregators that average factors: devices send these, and a component's place is its meaning"""
SHARED_A = ("frozen-a", "trimmed", "aircomp")
"""of these, the ones whose A nobody trains and nobody sends"""
BUNDLED = (*AGGREGATORS, *ROBUST, "aircomp")
EQUAL_RANKS = ("naive", "aircomp")
"""and the ones that need the same ranks of all devices: everybody gets the smallest"""

METHODS: dict[str, dict[str, Any]] = {
    # What this project proposes: changes of the adapters, merged exactly.
    "airllm": {},
    # FedIT (Zhang et al. 2023, arXiv 2305.05644): uniform rank, both factors averaged.
    "fedit": {"aggregator": "naive"},
    # HetLoRA (Cho et al. 2024, arXiv 2401.06432): truncation down, zero-padding up, devices weighed
    # by the norm of their update. Its pruning of ranks is left out: the policy decides the ranks.
    "hetlora": {"aggregator": "zero-padding", "weights": "norm"},
    # FLoRA (Wang et al. 2024, arXiv 2409.05976): fresh factors each round, stacked without a cut.
    "flora": {"aggregator": "stacking", "start": "fresh"},
    # FlexLoRA (Bai et al. 2024, arXiv 2402.11505): whole adapters, SVD of their weighted sum.
    "flexlora": {"aggregator": "exact", "sends": "adapter"},
    # raFLoRA (arXiv 2602.13486): FlexLoRA with weights for each rank partition.
    "raflora": {"aggregator": "rank-partition", "sends": "adapter"},
    # FFA-LoRA (Sun et al. 2024, arXiv 2403.12313): A frozen, B trained, sent and averaged.
    "ffa-lora": {"aggregator": "frozen-a"},
}


@pydantic.dataclasses.dataclass(frozen=True, slots=True, config=STRICT)
class FederatedConfig:
    """What devices train and send, how the cloud merges it, and who takes part."""

    method: str = "airllm"
    """airllm, fedit, hetlora, flora, flexlora, raflora or ffa-lora: where the other values come
    from unless they are given"""
    aggregator: str = "exact"
    """exact, rank-partition, stacking, zero-padding, naive, frozen-a, aircomp, or one of your own,
    <module>:<class>; against malicious devices: clipped (by the median norm) and trimmed (a trimmed
    mean over a frozen A)"""
    sends: Literal["change", "adapter"] = "change"
    """'change': what training has added to what a device holds; 'adapter': the trained components
    whole (exact, rank-partition and stacking; the other aggregators take factors)"""
    start: Literal["device", "fresh"] = "device"
    """'device': training goes on with the strongest components of the device's adapter; 'fresh':
    with random ones"""
    weights: Literal["examples", "uniform", "norm"] = "examples"
    """of devices in the mean: by their 'examples', 'uniform', or by the 'norm' of their update"""
    server_learning_rate: Positive = 1.0
    """of the merged change (sends = 'change')"""
    local_steps: Count = 5
    """optimiser steps of a device in a round"""
    local_batch_size: Count = 16
    """examples of such a step"""
    local_learning_rate: Positive = 3e-3
    """AdamW, constant"""
    cloud_steps: CountOrZero = 0
    """steps by which the cloud fine-tunes the merged adapter on its own text, each round"""
    ranks: Several[Count] = ()
    """largest rank of device d: entry d modulo their number; empty: training.r_max"""
    hardware: Annotated[Several[str], Field(min_length=1)] = ("phone",)
    """what device d computes with: entry d modulo their number; a profile's name, a TOML file,
    or one of your own, <module>:<function>"""
    participants: CountOrZero = 0
    """devices sampled for a round, or at work at a time (buffer > 0); 0: all"""
    buffer: CountOrZero = 0
    """0: rounds are synchronous; else devices go on by themselves, and whenever so many updates
    have come in they are merged, which counts as a round (FedBuff)"""
    staleness_exponent: NonNegative = 0.5
    """an update that is t merges old weighs (1 + t) to the minus this (buffer > 0)"""
    deadline_s: NonNegative = 0.0
    """virtual time from a round's start after which no update counts; 0: all are waited for"""
    dropout: Share = 0.0
    """probability that a device drops out of a round: before, during or after its download, or
    during its upload"""
    air_threshold_db: Decibel = 0.0
    """uplink SNR below which a device stays silent, and with which all others arrive (aircomp)"""
    privacy_noise: Annotated[float, Field(ge=0, le=1e6), NUMPY] = 0.0
    """standard deviation of the noise on a device's update over its sensitivity, which is twice
    privacy_clip; 0: none. Only where A is frozen, and rounds are synchronous"""
    privacy_clip: Positive = 1.0
    """Frobenius norm that the change of a round's update is cut to before (privacy_noise > 0)"""
    privacy_delta: Annotated[float, Field(gt=0, lt=1), NUMPY] = 1e-5
    """at which privacy_epsilon, that of all of a device's updates, is given (privacy_noise > 0)"""
    max_norm: Positive = 1e3
    """largest Frobenius norm of an update that the cloud takes for honest"""

    def __post_init__(self) -> None:
        method_values(self.method)
        if self.buffer and (self.needs_equal_ranks or self.deadline_s):
            raise ValueError(
                f"federated.buffer {self.buffer} needs an aggregator of unequal ranks and "
                f"deadline_s = 0, since there is no round to wait for; got {self.aggregator!r} and "
                f"{self.deadline_s}"
            )
        if 0.0 < self.privacy_noise < 1e-6:
            raise ValueError(
                f"federated.privacy_noise must be 0 (none) or >= 1e-6, got {self.privacy_noise}"
            )
        if self.privacy_noise and not (self.shares_a and not self.buffer):
            raise ValueError(
                f"federated.privacy_noise {self.privacy_noise} needs a frozen A (method "
                f"ffa-lora, or aggregator {', '.join(SHARED_A)}) and buffer = 0: elsewhere the "
                f"sensitivity of an update is not bounded; got aggregator {self.aggregator!r}, "
                f"buffer {self.buffer}"
            )

    @property
    def is_factored(self) -> bool:
        """Devices train and send the factors themselves."""
        return self.aggregator in FACTORED

    @property
    def shares_a(self) -> bool:
        """A is frozen and known to all."""
        return self.aggregator in SHARED_A

    @property
    def needs_equal_ranks(self) -> bool:
        return self.aggregator in EQUAL_RANKS

    @property
    def is_absolute(self) -> bool:
        """What is sent takes the place of what was there before, in both directions."""
        return self.is_factored or self.sends == "adapter"

    @property
    def sent(self) -> str:
        """'change', 'adapter' or 'factors'"""
        return "factors" if self.is_factored else self.sends


def check_aggregator(name: str, others: Sequence[str] = ()) -> None:
    """Raise ValueError unless ``name`` is an aggregator here; ``others`` are named beside these."""
    if name not in BUNDLED:
        raise ValueError(
            f"federated.aggregator must be one of {', '.join((*BUNDLED, *others))}, got {name!r}"
        )


def method_values(name: str) -> Mapping[str, Any]:
    """What a method's name sets in its section; raises ValueError that names the nearest."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"federated.method {name!r} is not known; {hint}methods are {', '.join(METHODS)}"
        )
    return METHODS[name]
