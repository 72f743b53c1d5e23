"""The parts of one run, of either mode: a device, and the cloud."""

from __future__ import annotations

from cloud.planning.downlink import Downlink
from cloud.planning.uplink import Uplink
from cloud.training.adapter_source import AdapterSource, TrajectorySource
from cloud.training.masked import MaskedTrainer
from edge.device import DeviceProfile
from experiments.assembly.federated import federated_planners, federated_profile
from experiments.assembly.workbench import Workbench
from experiments.config.schema import ExperimentConfig


def device_profile(bench: Workbench, device: int, config: ExperimentConfig) -> DeviceProfile:
    """One device of a run."""
    if config.mode == "federated":
        return federated_profile(bench, device, config)
    return bench.profile(device, config.payload.adapter_rank)


def planners(bench: Workbench, config: ExperimentConfig) -> tuple[Downlink, Uplink | None]:
    """The cloud of a run: what goes down, and in federated mode what comes up."""
    if config.mode == "federated":
        return federated_planners(bench, config)
    return _remote_downlink(bench, config), None


def _remote_downlink(bench: Workbench, config: ExperimentConfig) -> Downlink:
    base, name = bench.base, config.policy.name
    policy = bench.policy(config, seed=config.seed)
    master: AdapterSource
    if name == "paper":
        master = MaskedTrainer(
            base, bench.head, bench.training_set, config.training,
            num_rounds=config.rounds, seed=config.seed,
        )  # fmt: skip
    elif name in ("adalora", "adalora:blind"):
        master = TrajectorySource(bench.adalora_trajectory)
    else:
        master = TrajectorySource(bench.lora_trajectory)
    return Downlink(
        base,
        bench.head,
        master,
        policy,
        num_devices=config.num_devices,
        num_rounds=config.rounds,
        r_max=config.training.r_max,
        deadline_s=config.channel.deadline_s,
        is_shared_band=config.channel.sharing == "shared",
        payload=config.payload,
        reward=config.reward,
        probe_texts=bench.probe_texts,
    )
