"""Learning a rank policy before it is used: scenarios, turns, the curve, and going on."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airllm.checkpoint import load_state, save_state
from airllm.policies.airllm import NUM_COARSE, AirLlmPolicy, decode
from airllm.policies.knapsack import Ranks
from airllm.policies.observation import RoundObservation
from airllm.policies.registry import make_policy
from airllm.policies.store import save_policy
from channel.config import ChannelConfig
from channel.config import preset_values as channel_preset
from cloud.environment.env import RankEnvironment
from cloud.environment.scenarios import DeviceText, Scenario, Start, World, record, reference_rule
from experiments.assembly.workbench import workbench_for
from experiments.config.loader import dump_config, load_config
from experiments.config.schema import ExperimentConfig

_STREAM = 70

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]
Progress = Callable[[str, int, int], None]

_LEARNING = "learning.safetensors"
_CURVE = "learning_curve.csv"
_COLUMNS = (
    "update", "steps", "reward", "used", "held_out", "held_out_stderr", "held_out_absolute",
    "held_out_residual", "ppo_kl", "ppo_clip_fraction", "ppo_explained_variance", "ppo_entropy",
    "ddim_loss",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Score:
    """How far below the reference rule's loss a policy's is, in nats, mean over the rounds."""

    mean: float
    stderr: float
    """over the scenarios; not a number for a single one"""
    by_coding: dict[str, float]

    @property
    def bound(self) -> float:
        """A standard error below the mean: the highest of many scores is high by luck, too."""
        return self.mean - float(np.nan_to_num(self.stderr))


def build_scenarios(
    config: ExperimentConfig,
    seeds: Sequence[int],
    count: int,
    *,
    stream: int,
    on_progress: Progress = lambda what, done, total: None,
) -> list[Scenario]:
    """Scenarios over worlds of ``seeds``: runs are recorded, then put behind other channels."""
    learn = config.learn
    if max(learn.sharers) > config.num_devices:
        raise ValueError(
            f"learn.sharers must be at most num_devices {config.num_devices}, "
            f"got {max(learn.sharers)}"
        )
    rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(_STREAM, stream)))
    total = len(seeds) * len(learn.codings) * learn.recordings
    recorded: dict[str, list[list[Start]]] = {coding: [] for coding in learn.codings}
    done = 0
    on_progress("recording runs", 0, total)
    for seed in seeds:
        world = _world(replace(config, seed=seed))
        for coding in learn.codings:
            payload = replace(config.payload, coding=coding)
            for n in range(learn.recordings):
                behaviour = reference_rule if n % 2 == 0 else _perturbed(rng)
                channel = _channel(config, rng, config.num_devices)
                key = int(rng.integers(2**31))
                recorded[coding].append(
                    record(
                        world, channel, behaviour, payload=payload,
                        importance=AirLlmPolicy.importance, seed=key,
                    )
                )  # fmt: skip
                done += 1
                on_progress("recording runs", done, total)
    scenarios = []
    for i in range(count):
        runs = recorded[learn.codings[i % len(learn.codings)]]
        run = runs[int(rng.integers(len(runs)))]
        start = run[int(rng.integers(len(run)))]
        sharers = learn.sharers[(i // len(learn.codings)) % len(learn.sharers)]
        chosen = rng.choice(len(start.devices), size=sharers, replace=False)
        parts = len(start.world.texts[0].parts)
        scenarios.append(
            Scenario(
                start.take(np.sort(chosen).tolist()),
                _channel(config, rng, sharers),
                int(rng.integers(2**31)),
                int(rng.integers(parts)),
            )
        )
    return scenarios


class Learner:
    """A policy, the environment it learns in, and the one it is scored in."""

    def __init__(
        self,
        config: ExperimentConfig,
        training: RankEnvironment,
        held_out: RankEnvironment,
    ) -> None:
        self.config, self.training, self.held_out = config, training, held_out
        specs = training.scenarios[0].start.world.base.specs
        self.depths, self.kinds = depths, kinds = [s.depth for s in specs], [s.kind for s in specs]
        policy = make_policy(
            replace(config.policy, is_exploring=True),
            num_projections=len(depths), depths=depths, kinds=kinds,
            r_max=config.training.r_max, seed=config.seed,
        )  # fmt: skip
        if not isinstance(policy, AirLlmPolicy):
            raise ValueError(f"policy.name must be airllm to be learned, got {config.policy.name}")
        self.policy = policy
        self.update, self.best = 0, float("-inf")

    def score(self) -> Score:
        """The policy's mode on the held-out scenarios."""
        self.policy.is_exploring = False
        try:
            each = self.held_out.score(self.policy.decide_all)
        finally:
            self.policy.is_exploring = True
        codings = [s.start.payload.coding for s in self.held_out.scenarios]
        return Score(
            float(each.mean()),
            float(each.std(ddof=1) / np.sqrt(len(each))) if len(each) > 1 else float("nan"),
            {c: float(np.mean(each[[c == k for k in codings]])) for c in sorted(set(codings))},
        )

    def run(self, folder: Path, on_progress: Progress = lambda what, done, total: None) -> None:
        """Learn until ``learn.updates`` are done; kept is what is best on the held-out scenarios,
        by `Score.bound`.

        Goes on from ``folder`` if learning by the same configuration was interrupted there, or was
        finished with fewer updates. An environment begins anew with every evaluation, so that it
        makes no difference.
        """
        learn = self.config.learn
        if (folder / _LEARNING).exists():
            self._resume(folder)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            self._evaluate(folder, {})
        while self.update < learn.updates:
            self.training.reset()
            for _ in range(min(learn.evaluate_every, learn.updates - self.update)):
                row = self._update()
                on_progress("updates", self.update, learn.updates)
                is_last = self.update == learn.updates
                if self.update % learn.evaluate_every and not is_last:
                    _append(folder / _CURVE, row)
            self._evaluate(folder, row)

    def _update(self) -> dict[str, Any]:
        env, policy = self.training, self.policy
        rewards, used = [], []
        scalars: dict[str, float] = {}
        while not scalars:
            step = env.step(policy.decide_all(env.observations))
            rewards.append(step.reward.mean())
            used.append(step.used.mean())
            scalars = policy.learn_all(
                step.reward, env.observations, is_last=False, is_terminal=step.is_terminal
            )
        self.update += 1
        return {
            "update": self.update, "steps": env.num_steps, "reward": float(np.mean(rewards)),
            "used": float(np.mean(used)), **scalars,
        }  # fmt: skip

    def _evaluate(self, folder: Path, row: dict[str, Any]) -> None:
        score = self.score()
        row = {"update": self.update, "steps": self.training.num_steps} | row
        row |= {"held_out": score.mean, "held_out_stderr": score.stderr}
        row |= {f"held_out_{coding}": value for coding, value in score.by_coding.items()}
        logger.info(
            "update %d: %.4f +- %.4f nats below the reference rule %s",
            self.update, score.mean, score.stderr, score.by_coding,
        )  # fmt: skip
        if score.bound > self.best:
            self.best = score.bound
            save_policy(
                self.policy, folder, depths=self.depths, kinds=self.kinds,
                r_max=self.config.training.r_max,
                facts={
                    "updates": self.update, "steps": self.training.num_steps,
                    "held_out_nats": score.mean, "held_out_stderr": score.stderr,
                },
            )  # fmt: skip
        _append(folder / _CURVE, row)
        save_state(
            {
                "config": self._identity, "update": self.update, "best": self.best,
                "policy": self.policy.state_dict(), "environment": self.training.state_dict(),
            },
            folder / _LEARNING,
        )  # fmt: skip

    @property
    def _identity(self) -> str:
        """The configuration, but for how long it learns: a finished policy may learn on."""
        return dump_config(replace(self.config, learn=replace(self.config.learn, updates=1)))

    def _resume(self, folder: Path) -> None:
        state = load_state(folder / _LEARNING)
        if state["config"] != self._identity:
            raise ValueError(
                f"--out {folder} holds a policy of another configuration; name another folder, or "
                "remove it"
            )
        self.policy.load_state_dict(state["policy"])
        self.training.load_state_dict(state["environment"])
        self.update, self.best = int(state["update"]), float(state["best"])
        _cut(folder / _CURVE, self.update)


def make_environments(
    config: ExperimentConfig, on_progress: Progress = lambda what, done, total: None
) -> tuple[RankEnvironment, RankEnvironment]:
    """Record and measure the references: the environment to learn in, and the held-out one."""
    learn = config.learn
    training = RankEnvironment(
        build_scenarios(
            config, learn.seeds, learn.scenarios, stream=0, on_progress=on_progress
        ),
        rows=learn.rows, seed=config.seed,
    )  # fmt: skip
    held_out = RankEnvironment(
        build_scenarios(
            config, learn.held_out_seeds, learn.held_out, stream=1, on_progress=on_progress
        ),
        rows=learn.rows, seed=config.seed,
    )  # fmt: skip
    for env in (training, held_out):
        env.prepare(lambda done, total: on_progress("playing the reference rule", done, total))
    return training, held_out


def make_learner(
    config: ExperimentConfig, on_progress: Progress = lambda what, done, total: None
) -> Learner:
    """A learner, with environments of its own."""
    return Learner(config, *make_environments(config, on_progress))


def _world(config: ExperimentConfig) -> World:
    bench = workbench_for(config)
    size = config.learn.examples
    texts = []
    for device in range(config.num_devices):
        text = bench.text_of(device)
        if len(text.ids) < size:
            raise ValueError(
                f"learn.examples {size} is more than the {len(text.ids)} texts of device {device}; "
                "lower it or raise examples_per_device"
            )
        parts = tuple(part for part in text.by_length(size) if len(part.ids) == size)
        profile = bench.profile(device, config.payload.adapter_rank)
        texts.append(DeviceText(parts, profile.entropy, profile.oov_rate))
    return World(
        base=bench.base,
        head=bench.head,
        masters=bench.lora_trajectory.adapters,
        probe_texts=bench.probe_texts,
        texts=tuple(texts),
        r_max=config.training.r_max,
    )


def _channel(config: ExperimentConfig, rng: np.random.Generator, sharers: int) -> ChannelConfig:
    learn = config.learn
    preset = learn.presets[int(rng.integers(len(learn.presets)))]
    low, high = np.log(learn.bandwidth_min_hz), np.log(learn.bandwidth_max_hz)
    values = {
        "snr_db": float(rng.uniform(learn.snr_min_db, learn.snr_max_db)),
        "bandwidth_hz": float(np.exp(rng.uniform(low, high))),
    }
    sets = [f"{key}={value!r}" for key, value in values.items()]
    sets += [f'preset="{preset}"', 'path.scenario="none"', 'path.mobility="static"']
    return load_config(ChannelConfig, sets=sets, presets={"preset": channel_preset})


def _perturbed(rng: np.random.Generator) -> Callable[[RoundObservation], Ranks]:
    """A rule around the reference, so that starts are not only its own."""

    def rule(observation: RoundObservation) -> Ranks:
        coarse = np.tile(np.tanh(rng.normal(0.0, 0.4, NUM_COARSE)), (observation.num_devices, 1))
        shape = (observation.num_devices, observation.num_projections)
        return decode(observation, coarse, rng.normal(0.0, 0.6, shape))

    return rule


def _append(path: Path, row: dict[str, Any]) -> None:
    is_new = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS, restval="", extrasaction="ignore")
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def _cut(path: Path, update: int) -> None:
    """Drop what was written after a checkpoint."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if int(row["update"]) <= update]
    path.unlink()
    for row in rows:
        _append(path, row)
