"""The parts of a federated run: what each device trains, and the cloud that merges it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from airllm.lora.adapter import Adapter
from airllm.lora.local_update import LocalTraining, initial_factors
from airllm.lora.payload import MAX_RANK, Coding
from airllm.lora.privacy import Privacy
from airllm.lora.sensitivity import Importance
from airllm.models.batches import BatchSampler, Examples, join
from airllm.models.flops import training_bytes
from airllm.models.projections import ProjectionSpec
from airllm.policies.knapsack import Ranks
from cloud.aggregation.aggregate import Aggregator
from cloud.clients.participation import Participation
from cloud.planning.downlink import Downlink
from cloud.planning.uplink import CloudText, Uplink
from cloud.training.adapter_source import GlobalAdapter
from edge.device import DeviceProfile
from edge.hardware import Hardware, load_hardware
from edge.local_update import LocalWork
from experiments.assembly.workbench import Workbench
from experiments.config.plugins import is_own, make_own
from experiments.config.schema import ExperimentConfig

_CLOUD_STREAM = 83  # random stream of the cloud's batches
_UPLINK_SEED = 1_000_003  # added to the seed of the policy that decides the uplink's ranks


def federated_profile(bench: Workbench, device: int, config: ExperimentConfig) -> DeviceProfile:
    """A device that trains: its own text, and how it goes about it."""
    federated = config.federated
    own, entropy, oov = bench.training_text(device)
    initial = _initial(bench, config)
    hardware = _hardware(federated.hardware[device % len(federated.hardware)])
    _check_memory(bench, device, config, hardware)
    return replace(
        bench.profile(device, _adapter_rank(bench, config)),
        entropy=entropy,
        oov_rate=oov,
        num_examples=len(own.ids),
        work=LocalWork(
            examples=own,
            batch_size=federated.local_batch_size,
            training=_training(config, federated.local_steps),
            sends=federated.sent,
            number_format=config.payload.number_format,
            r_max=config.training.r_max,
            initial=initial,
            shared_down=initial.down if federated.shares_a else None,
            hardware=hardware,
            privacy=_privacy(config),
        ),
    )


def federated_planners(bench: Workbench, config: ExperimentConfig) -> tuple[Downlink, Uplink]:
    """The cloud of a federated run."""
    federated, base = config.federated, bench.base
    capacity = _capacity(config)
    policy = bench.policy(config, seed=config.seed)
    importance: Importance = policy.importance
    if federated.is_factored:
        importance = "first"  # a component's place is its meaning
    elif importance == "first":
        importance = "energy"  # what is merged has no order of its own
    master = GlobalAdapter(_initial(bench, config))
    coding: Coding = "absolute" if federated.is_absolute else "residual"
    payload = replace(config.payload, coding=coding)
    downlink = Downlink(
        base,
        bench.head,
        master,
        policy,
        num_devices=config.num_devices,
        num_rounds=config.rounds,
        r_max=_downlink_rank(config),
        deadline_s=config.channel.deadline_s,
        is_shared_band=config.channel.sharing == "shared",
        payload=replace(payload, adapter_rank=_adapter_rank(bench, config)),
        reward=config.reward,
        probe_texts=bench.probe_texts,
        importance=importance,
        shared_down=master.adapter.down if federated.shares_a else None,
        limit=lambda devices, ranks: _limited(config, capacity, devices, ranks),
    )
    uplink = Uplink(
        downlink,
        bench.policy(config, seed=config.seed + _UPLINK_SEED),
        master,
        federated,
        _training(config, max(federated.cloud_steps, 1)),
        Participation(config.num_devices, federated.participants, federated.dropout, config.seed),
        capacity=capacity,
        r_max=config.training.r_max,
        payload=payload,
        adapter_rank=_adapter_rank(bench, config),
        cloud_text=_cloud_text(bench, config),
        cost_weight=config.reward.cost_weight,
        probes=join(bench.probe_texts(0, 1, 1) if config.policy.is_exploring else ()),
        aggregator=_own_aggregator(config),
    )
    return downlink, uplink


@lru_cache(maxsize=64)
def _hardware(name: str) -> Hardware:
    if is_own("hardware", name):
        own: Hardware = make_own("hardware", name)
        return own
    return load_hardware(name)


def _own_aggregator(config: ExperimentConfig) -> Aggregator | None:
    name = config.federated.aggregator
    if not is_own("aggregator", name):
        return None
    own: Aggregator = make_own("aggregator", name, num_devices=config.num_devices, seed=config.seed)
    return own


def _training(config: ExperimentConfig, steps: int) -> LocalTraining:
    federated = config.federated
    return LocalTraining(
        steps=steps,
        learning_rate=federated.local_learning_rate,
        scale=config.training.lora_alpha / config.training.r_max,
        start=federated.start,
        is_factored=federated.is_factored,
        trains_down=not federated.shares_a,
        seed=config.seed,
    )


def _privacy(config: ExperimentConfig) -> Privacy | None:
    federated = config.federated
    if not federated.privacy_noise:
        return None
    return Privacy(federated.privacy_clip, federated.privacy_noise, config.seed)


def _initial(bench: Workbench, config: ExperimentConfig) -> Adapter:
    if config.federated.is_factored:
        return _factors(tuple(bench.base.specs), config.training.r_max, config.seed)
    return Adapter.zero(bench.base.specs)


@lru_cache(maxsize=1)
def _factors(specs: tuple[ProjectionSpec, ...], r_max: int, seed: int) -> Adapter:
    """The same for all devices, which draw them anew at each message otherwise."""
    return initial_factors(specs, r_max, seed)


def _adapter_rank(bench: Workbench, config: ExperimentConfig) -> int:
    """Largest rank of the global adapter, and of what a device holds of it."""
    if config.federated.is_absolute:
        return config.training.r_max
    if config.federated.aggregator == "stacking":
        return max(min(s.in_features, s.out_features) for s in bench.base.specs)
    return config.payload.adapter_rank


def _downlink_rank(config: ExperimentConfig) -> int:
    """Largest rank that is sent down; stacked updates come as they are."""
    if config.federated.aggregator == "stacking":
        asked = config.federated.participants or config.num_devices
        return min(MAX_RANK, asked * config.training.r_max)
    return config.training.r_max


def _capacity(config: ExperimentConfig) -> NDArray[np.int64]:
    """[devices]"""
    ranks = config.federated.ranks or (config.training.r_max,)
    return np.array([ranks[d % len(ranks)] for d in range(config.num_devices)], dtype=np.int64)


def _limited(
    config: ExperimentConfig, capacity: NDArray[np.int64], devices: Sequence[int], ranks: Ranks
) -> Ranks:
    """A downlink's ranks as the method needs them."""
    if config.federated.is_absolute:
        # What comes down is what will be trained.
        ranks = np.minimum(ranks, capacity[list(devices)][:, None])
    served = np.asarray(ranks.any(axis=1))
    if config.federated.needs_equal_ranks and served.any():
        ranks = np.where(served[:, None], ranks[served].min(axis=0), 0)
    return ranks


def _cloud_text(bench: Workbench, config: ExperimentConfig) -> CloudText:
    data, size = bench.cloud_set, config.federated.local_batch_size
    sampler = BatchSampler(len(data.ids), size, config.seed, _CLOUD_STREAM)

    def examples_of(step: int) -> Examples:
        return data.take(sampler.indices(step))

    return CloudText(examples_of, config.federated.cloud_steps)


def _check_memory(
    bench: Workbench, device: int, config: ExperimentConfig, hardware: Hardware
) -> None:
    ranks = np.full(len(bench.base.specs), _capacity(config)[device])
    shape = (config.federated.local_batch_size, config.model.max_length)
    needed = training_bytes(bench.base, shape, ranks)
    if needed > hardware.memory_bytes:
        raise ValueError(
            f"device {device} ({hardware.name}) has {hardware.memory_bytes / 1e6:.0f} MB, but "
            f"training takes {needed / 1e6:.0f} MB; lower federated.local_batch_size or "
            f"federated.ranks, or name other federated.hardware"
        )
