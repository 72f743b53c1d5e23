"""The configuration of a run: one section for each package, checked where it is made."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

import pydantic.dataclasses
from pydantic import Field

from airllm.bounds import NUMPY, STRICT, Count, CountOrZero, NonNegative, Number, Positive, Several
from airllm.data.datasets import DataConfig
from airllm.lora.payload import Coding, PayloadConfig
from airllm.models.base import ModelConfig
from airllm.policies.registry import PolicyConfig
from airllm.policies.reward import RewardConfig
from channel.config import ChannelConfig
from channel.config import preset_values as channel_preset
from cloud.aggregation.methods import FederatedConfig, method_values
from cloud.training.lora import TrainingConfig
from experiments.config.axes import parse_sweep
from experiments.config.loader import Presets, Settings, load_config
from experiments.config.plugins import check_aggregator_name, check_policy_name, policy_preset

# Sections whose values start from a preset, by the key that names it.
PRESETS: Presets = {
    "channel.preset": channel_preset,
    "policy.name": policy_preset,
    "federated.method": method_values,
}
Seed = Annotated[int, Field(ge=0, lt=2**63), NUMPY]
Seeds = Annotated[Several[Seed], Field(min_length=1)]


@pydantic.dataclasses.dataclass(frozen=True, slots=True, config=STRICT)
class LearnConfig:
    """What `airllm learn` draws scenarios from, and how long it learns."""

    seeds: Seeds = (100, 101)
    """seeds of the data, masters and devices that are learned from"""
    held_out_seeds: Seeds = (102,)
    """and of those that learning is scored on"""
    codings: Annotated[Several[Coding], Field(min_length=1)] = ("absolute", "residual")
    """codings of the updates"""
    presets: Annotated[Several[str], Field(min_length=1)] = ("iot-shared-1mhz",)
    """presets of the channel"""
    snr_min_db: Number = -8.0
    """lowest mean SNR"""
    snr_max_db: Number = 18.0
    """highest mean SNR"""
    bandwidth_min_hz: Positive = 0.25e6
    """narrowest band"""
    bandwidth_max_hz: Number = 4e6
    """widest band, the logarithm drawn uniformly"""
    sharers: Annotated[Several[Count], Field(min_length=1)] = (2, 4, 8)
    """devices of a scenario, at most num_devices"""
    recordings: Count = 3
    """runs recorded for each seed and coding, every second one with random decisions"""
    scenarios: Count = 120
    """scenarios to learn from"""
    held_out: Count = 36
    """scenarios to score on"""
    examples: Count = 32
    """texts of a device that a step is measured on"""
    rows: Count = 56
    """devices in all cells that are stepped side by side"""
    updates: Count = 60
    """PPO's updates, each after policy.ppo.num_steps steps of all cells"""
    evaluate_every: Count = 10
    """updates between two scores, and between two checkpoints"""

    def __post_init__(self) -> None:
        if both := sorted(set(self.seeds) & set(self.held_out_seeds)):
            raise ValueError(
                f"learn.held_out_seeds must differ from learn.seeds, both have {both[0]}"
            )
        for preset in self.presets:
            channel_preset(preset, key="learn.presets")
        if not self.snr_min_db <= self.snr_max_db:
            raise ValueError(
                f"learn.snr_max_db must be at least learn.snr_min_db {self.snr_min_db}, "
                f"got {self.snr_max_db}"
            )
        if not self.bandwidth_min_hz <= self.bandwidth_max_hz:
            raise ValueError(
                f"learn.bandwidth_max_hz must be at least learn.bandwidth_min_hz "
                f"{self.bandwidth_min_hz}, got {self.bandwidth_max_hz}"
            )


@pydantic.dataclasses.dataclass(frozen=True, slots=True, config=STRICT)
class RuntimeConfig:
    """How the host computes; changes no number but through the order of sums."""

    threads: CountOrZero = 0
    """CPU threads of PyTorch; 0: two, or one in each job of a sweep. Never more than the usable
    cores (affinity, CPU quota) or OMP_NUM_THREADS. summary.json has the number that was used"""
    deterministic: bool = False
    """on CUDA, only algorithms that give the same bits every time; a CPU's do so for a given number
    of threads"""
    stacked: bool = False
    """all devices in the same passes, local runtime only: worth most on a GPU; a device's numbers
    then depend, in their last digits, on the others"""
    reply_timeout_s: Positive = 3600.0
    """wall-clock time within which a node has to answer; who does not has missed the round"""
    connect_timeout_s: Positive = 60.0
    """wall-clock time within which the nodes of a deployment have to be there"""
    checkpoint_s: NonNegative = 30.0
    """wall-clock time between two checkpoints of a run; 0: one after every round"""
    workers: Count = 2
    """worker processes of the simulation runtime, each with one base model for all its devices;
    fewer where their threads would be more than there are cores"""


@pydantic.dataclasses.dataclass(frozen=True, slots=True, config=STRICT)
class ExperimentConfig:
    """One simulation, and the sweep around it."""

    seed: Seed = 0
    """of everything random"""
    mode: Literal["remote", "federated"] = "remote"
    """'remote': the cloud trains, devices receive; 'federated': devices train too"""
    rounds: Annotated[int, Field(ge=1, le=1_000_000), NUMPY] = 6
    """updates offered to each device"""
    num_devices: Annotated[int, Field(ge=1, le=1_000_000), NUMPY] = 4
    """devices in the cell"""
    examples_per_device: CountOrZero = 160
    """of its text that a device measures on; 0: its whole share"""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    federated: FederatedConfig = field(default_factory=FederatedConfig)
    channel: ChannelConfig = field(default_factory=ChannelConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    payload: PayloadConfig = field(default_factory=PayloadConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    sweep: dict = field(default_factory=dict, hash=False)
    """what `airllm sweep` crosses: any key with a list of its values, seed with their number, and
    variants of a policy under labels of their own"""
    learn: LearnConfig = field(default_factory=LearnConfig)

    def __post_init__(self) -> None:
        parse_sweep(ExperimentConfig, self.sweep)
        check_policy_name(self.policy.name)
        check_aggregator_name(self.federated.aggregator)
        if self.payload.coding == "residual" and self.payload.adapter_rank < self.training.r_max:
            raise ValueError(
                f"payload.adapter_rank {self.payload.adapter_rank} must be at least training.r_max "
                f"{self.training.r_max}, or a device could not hold a whole update"
            )
        if self.mode == "federated":
            _check_federated(self)
        elif self.federated.aggregator != FederatedConfig().aggregator:
            raise ValueError(
                f"federated.aggregator {self.federated.aggregator!r} (federated.method "
                f"{self.federated.method!r}) merges what devices send, which in mode 'remote' is "
                f"nothing; set mode = 'federated', or leave it out"
            )
        if self.model.task == "classify" and not self.data.label_column:
            raise ValueError(
                "model.task 'classify' needs data.label_column; set model.task = 'causal' for "
                "text without labels"
            )


def load_experiment(
    config: Path | str | None = None, sets: Settings = (), *, text: str | None = None
) -> ExperimentConfig:
    """A bundled configuration by its name, a file or a text, with settings on top."""
    return load_config(ExperimentConfig, config, sets, presets=PRESETS, text=text)


def _check_federated(config: ExperimentConfig) -> None:
    federated = config.federated
    if config.policy.name == "forward":
        raise ValueError(
            "policy.name 'forward' looks at losses with updates that the cloud has, "
            "which it has not of what comes up; take another policy or mode = 'remote'"
        )
    if config.policy.name.startswith("adalora"):
        raise ValueError(
            f"policy.name {config.policy.name!r} follows the cloud's own training, which federated "
            f"mode has none of; take another policy or mode = 'remote'"
        )
    if config.policy.is_exploring and (federated.participants or federated.buffer):
        raise ValueError(
            "policy.is_exploring needs the same devices in every round; set "
            "federated.participants = 0 (all) and federated.buffer = 0"
        )
    if not config.training.head_examples:
        raise ValueError(
            "training.head_examples must be > 0 in federated mode: they are the cloud's own text, "
            "and the devices share the rest"
        )
    if max(federated.ranks, default=0) > config.training.r_max:
        raise ValueError(
            f"federated.ranks must be at most training.r_max {config.training.r_max}, got "
            f"{max(federated.ranks)}"
        )
    if federated.participants > config.num_devices:
        raise ValueError(
            f"federated.participants must be at most num_devices {config.num_devices}, got "
            f"{federated.participants}; 0 takes all"
        )
    if federated.buffer and config.runtime.stacked:
        raise ValueError(
            "runtime.stacked has nothing to stack in asynchronous rounds, where devices are asked "
            "one by one; set it to false, or federated.buffer = 0"
        )
    if federated.deadline_s and federated.deadline_s <= config.channel.deadline_s:
        raise ValueError(
            f"federated.deadline_s {federated.deadline_s} must be above channel.deadline_s "
            f"{config.channel.deadline_s}, which the download alone may take"
        )
