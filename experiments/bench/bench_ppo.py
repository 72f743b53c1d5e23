"""Our PPO beside Stable-Baselines3's: same tasks, settings, budgets and seeds.

python -m experiments.bench.bench_ppo (needs pip install 'airllm-sim[bench]')

Ours acts in real numbers, so both push CartPole's cart by the sign of one. Both normalise
observations and rewards and anneal learning rate and clipping. The score is the mean return of 20
episodes by the policy's mode after learning. One thread.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import numpy as np
import torch

from airllm.rl.ppo import Ppo, PpoConfig
from airllm.rl.rollout import ReturnScale, Rollout

_EPISODES = 20


@dataclass(frozen=True)
class Task:
    name: str
    make: Callable[[], gym.Env]
    num_steps: int
    """of the environment, in all"""
    num_envs: int
    segment: int
    """steps of each environment between two updates"""
    ppo: PpoConfig


class SignAction(gym.ActionWrapper):
    """CartPole by the sign of a real number."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,))

    def action(self, action: np.ndarray) -> int:
        return int(action[0] > 0)


_CARTPOLE = PpoConfig(
    learning_rate=1e-3, update_epochs=10, minibatch_size=128, gamma=0.98, gae_lambda=0.9,
    log_std=0.0, target_kl=1e9, norm_reward=True,
)  # fmt: skip
_PENDULUM = replace(_CARTPOLE, gamma=0.9, gae_lambda=0.95)
TASKS = (
    Task("CartPole-v1", lambda: SignAction(gym.make("CartPole-v1")), 50_000, 8, 64, _CARTPOLE),
    Task("CartPole-v1", lambda: SignAction(gym.make("CartPole-v1")), 100_000, 8, 64, _CARTPOLE),
    Task("Pendulum-v1", lambda: gym.make("Pendulum-v1"), 80_000, 4, 512, _PENDULUM),
)


def ours(task: Task, seed: int) -> float:
    """Learn with `airllm.rl.ppo` and score."""
    envs = gym.vector.SyncVectorEnv(
        [task.make] * task.num_envs, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP
    )
    space, seen_space = envs.single_action_space, envs.single_observation_space
    assert isinstance(space, gym.spaces.Box)
    assert isinstance(seen_space, gym.spaces.Box)
    ppo = Ppo(seen_space.shape[0], space.shape[0], task.ppo, seed=seed)
    scale, rollout = ReturnScale(task.ppo.gamma), Rollout()
    seen, _ = envs.reset(seed=seed)
    states = ppo.normalise(seen)
    per_update = task.num_envs * task.segment
    num_updates = task.num_steps // per_update
    for update in range(num_updates):
        for _ in range(task.segment):
            actions, log_probs, values = ppo.act(states)
            seen, rewards, is_terminal, is_cut, info = envs.step(
                actions.clip(space.low, space.high).astype(np.float32)
            )
            limit = np.full(task.num_envs, np.nan)
            for i in np.flatnonzero(is_cut & ~is_terminal):
                last = ppo.normalise(info["final_obs"][i][None], is_learning=False)
                limit[i] = ppo.value(last)[0]
            rollout.add(
                states=states, actions=actions, log_probs=log_probs, values=values,
                rewards=scale(rewards, is_terminal | is_cut), is_terminal=is_terminal,
                truncated_values=limit,
            )  # fmt: skip
            states = ppo.normalise(seen)
        segment = rollout.finish(ppo.value(states), gamma=task.ppo.gamma, lam=task.ppo.gae_lambda)
        ppo.update(segment, share=1.0 - update / num_updates)

    def act(observation: np.ndarray) -> np.ndarray:
        state = ppo.normalise(observation[None], is_learning=False)
        return ppo.act(state, is_exploring=False)[0][0].clip(space.low, space.high)

    return score(task, act)


def theirs(task: Task, seed: int) -> float:
    """Learn with Stable-Baselines3 and score."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    config = task.ppo
    envs = VecNormalize(DummyVecEnv([task.make] * task.num_envs), gamma=config.gamma)
    model = PPO(
        "MlpPolicy", envs, seed=seed, device="cpu", n_steps=task.segment,
        learning_rate=lambda left: left * config.learning_rate,
        clip_range=lambda left: left * config.clip_coef,
        batch_size=config.minibatch_size, n_epochs=config.update_epochs, gamma=config.gamma,
        gae_lambda=config.gae_lambda, ent_coef=config.ent_coef,
        vf_coef=config.vf_coef, max_grad_norm=config.max_grad_norm,
        policy_kwargs={"log_std_init": config.log_std},
    )  # fmt: skip
    per_update = task.num_envs * task.segment
    model.learn(task.num_steps // per_update * per_update)

    def act(observation: np.ndarray) -> np.ndarray:
        return model.predict(envs.normalize_obs(observation), deterministic=True)[0]

    return score(task, act)


def score(task: Task, act: Callable[[np.ndarray], np.ndarray]) -> float:
    """Mean return over episodes that neither has seen."""
    env, returns = task.make(), []
    for episode in range(_EPISODES):
        seen, _ = env.reset(seed=10_000 + episode)
        total, is_over = 0.0, False
        while not is_over:
            seen, reward, is_terminal, is_cut, _ = env.step(act(seen).astype(np.float32))
            total, is_over = total + float(reward), is_terminal or is_cut
        returns.append(total)
    return float(np.mean(returns))


def main() -> None:
    torch.set_num_threads(1)
    print(f"PPO against Stable-Baselines3's, Python {platform.python_version()}, one thread")
    for task in TASKS:
        print(f"{task.name}, {task.num_steps:,d} steps, mean return of {_EPISODES} episodes")
        for name, learn in (("ours", ours), ("sb3", theirs)):
            started = time.perf_counter()
            found = np.array([learn(task, seed) for seed in range(5)])
            seconds = (time.perf_counter() - started) / len(found)
            each = " ".join(f"{value:8.1f}" for value in found)
            print(
                f"    {name:5s}{each}   mean {found.mean():8.1f}, std {found.std(ddof=1):6.1f}, "
                f"{seconds:.0f} s a seed",
                flush=True,
            )


if __name__ == "__main__":
    main()
