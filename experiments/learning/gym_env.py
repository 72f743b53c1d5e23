"""The learning environment for others' agents.

``gymnasium.make("experiments.learning.gym_env:airllm/RankAllocation-v0")``; the part before the
colon is imported, which registers the name.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvCreator
from numpy.typing import NDArray

from airllm.policies.airllm import NUM_COARSE, decode, smooth_basis
from airllm.policies.features import LARGEST, Features
from cloud.environment.env import RankEnvironment
from experiments.config.loader import Settings
from experiments.config.schema import load_experiment
from experiments.learning.learn import build_scenarios

logger = logging.getLogger(__name__)


class RankAllocationEnv(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """One cell of devices that share a band, drawn anew with every episode.

    The observation holds `airllm.policies.features.Features` of each device, [devices * features];
    the action 16 numbers in [-1, 1] for each, [devices * 16]: budget fraction, level of the scaled
    utilities and 14 priorities (`airllm.policies.airllm.decode`). The reward is by how many nats
    the devices' losses fell more than under the reference rule, mean over the devices.

    ``config`` is what `airllm learn` takes (a file or the name of a bundled one), ``sets`` are
    settings such as ``{"learn.recordings": 1}``. Making it records runs of the real model, which
    takes minutes with MiniLM; the log says how far it is.
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self, config: Path | str = "learn", num_devices: int = 4, sets: Settings = ()
    ) -> None:
        experiment = load_experiment(config, sets)
        learn = replace(experiment.learn, sharers=(num_devices,))
        scenarios = build_scenarios(
            replace(experiment, learn=learn), learn.seeds, learn.scenarios, stream=0,
            on_progress=lambda what, done, total: logger.info("%s: %d of %d", what, done, total),
        )  # fmt: skip
        self._cells = RankEnvironment(scenarios, rows=num_devices, seed=experiment.seed)
        specs = scenarios[0].start.world.base.specs
        depths, kinds = [s.depth for s in specs], [s.kind for s in specs]
        self._features = Features(depths, kinds)
        self._basis = smooth_basis(depths, kinds)
        self._shape = (num_devices, NUM_COARSE)
        self.observation_space = gym.spaces.Box(
            -LARGEST, LARGEST, (num_devices * self._features.size,), np.float32
        )
        self.action_space = gym.spaces.Box(-1.0, 1.0, (num_devices * NUM_COARSE,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self._cells.seed(seed)
        self._cells.reset()
        return self._look(), {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        coarse = np.clip(np.asarray(action, dtype=np.float64).reshape(self._shape), -1.0, 1.0)
        (observation,), before = self._cells.observations, self._look()
        ranks = decode(observation, coarse, coarse[:, -len(self._basis) :] @ self._basis)
        step = self._cells.step([ranks])
        is_over = bool(step.is_terminal[0])
        info = {"decrease": step.decrease, "ranks": ranks}
        return (
            (before if is_over else self._look()),
            float(step.reward.mean()),
            is_over,
            False,
            info,
        )

    def _look(self) -> NDArray[np.float32]:
        (observation,) = self._cells.observations
        return self._features(observation).astype(np.float32).reshape(-1)


gym.register("airllm/RankAllocation-v0", entry_point=cast(EnvCreator, RankAllocationEnv))
