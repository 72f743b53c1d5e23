"""A conditional DDIM (Song et al. 2021) over one value for each projection.

Classifier-free guidance (Ho and Salimans 2022) as w in ``uncond + w (cond - uncond)``: 0 is
unconditional, 1 conditional, above 1 more of the condition.
"""

from __future__ import annotations

import typing
from copy import copy
from typing import Annotated, Literal, Protocol, get_args

import pydantic.dataclasses
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from airllm.bounds import NUMPY, STRICT, Count, Number, Positive, Whole
from airllm.rl.actor_critic import MAX_WIDTH

if typing.TYPE_CHECKING:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

Prediction = Literal["sample", "epsilon", "v_prediction"]
PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)


@pydantic.dataclasses.dataclass(frozen=True, slots=True, config=STRICT)
class DdimConfig:
    """The diffusion refiner's settings."""

    hidden: Annotated[int, Field(ge=1, le=MAX_WIDTH), NUMPY] = 128
    """width of the denoiser"""
    num_blocks: Annotated[int, Field(ge=1, le=64), NUMPY] = 2
    """residual blocks of the denoiser"""
    prediction: Prediction = "sample"
    """what the denoiser predicts: 'sample' (x0), 'epsilon' or 'v_prediction'"""
    train_steps: Annotated[int, Field(ge=2, le=100_000), NUMPY] = 1000
    """diffusion steps of the forward process"""
    sampling_steps: Count = 10
    """steps of the deterministic sampler"""
    guidance: Number = 1.5
    """weight w of classifier-free guidance"""
    condition_dropout: Annotated[float, Field(ge=0, lt=1), NUMPY] = 0.1
    """share of training rows whose condition is replaced by none"""
    learning_rate: Positive = 3e-4
    """of Adam"""
    batch_size: Count = 64
    """rows of an update, from the replay"""
    updates_per_turn: Whole = 8
    """updates each time it is DDIM's turn"""
    replay_size: Count = 10_000
    """rows that the replay holds"""

    def __post_init__(self) -> None:
        if self.sampling_steps > self.train_steps:
            raise ValueError(
                f"policy.ddim.sampling_steps {self.sampling_steps} must not exceed "
                f"policy.ddim.train_steps {self.train_steps}"
            )


class Predictor(Protocol):
    """What a sampler asks at each step: x [rows, size] at step t, with or without condition."""

    def __call__(self, x: Tensor, t: int, *, is_conditional: bool) -> Tensor: ...


def make_scheduler(
    config: DdimConfig, *, beta_schedule: str = "scaled_linear", clip: bool = False
) -> DDIMScheduler:
    """diffusers' DDIM with ``trailing`` steps, which start at pure noise.

    Betas go from 1e-4 to 2e-2 over 1,000 steps (Ho et al. 2020); fewer steps take more each, so
    that the last one leaves next to nothing of the signal.
    """
    # Its import takes seconds, in every process of a device too, which has no policy.
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    per_step = 1000 / config.train_steps
    return DDIMScheduler(
        num_train_timesteps=config.train_steps,
        beta_start=1e-4 * per_step,
        beta_end=min(2e-2 * per_step, 0.999),
        beta_schedule=beta_schedule,
        prediction_type=config.prediction,
        timestep_spacing="trailing",
        clip_sample=clip,
        set_alpha_to_one=True,
    )


def trailing_steps(train_steps: int, num_steps: int) -> list[int]:
    """The ``num_steps`` steps that a sampler takes, evenly apart from the last one downwards.

    Trailing spacing (Lin et al. 2024, table 2), in whole numbers. Raises ValueError unless there
    are 1 to ``train_steps`` of them.
    """
    if not 1 <= num_steps <= train_steps:
        raise ValueError(f"num_steps must be in 1 to train_steps {train_steps}, got {num_steps}")
    return [
        (2 * train_steps * left + num_steps) // (2 * num_steps) - 1
        for left in range(num_steps, 0, -1)
    ]


@torch.no_grad()
def sample(
    scheduler: DDIMScheduler, predict: Predictor, noise: Tensor, *, num_steps: int, guidance: float
) -> Tensor:
    """The deterministic sampler (eta 0) from ``noise`` [rows, size].

    Afterwards ``scheduler.timesteps`` are those that it took. Raises ValueError for more of them
    than the scheduler has.
    """
    train_steps = int(scheduler.config["num_train_timesteps"])
    steps = trailing_steps(train_steps, num_steps)
    scheduler.timesteps = torch.tensor(steps)
    # diffusers steps to t - train_steps // num_steps, which is the next of these only where the
    # division leaves nothing over. So it gets a process of these steps alone (Nichol and Dhariwal
    # 2021, section 4), in which each step goes to the entry before.
    spaced = copy(scheduler)
    spaced.alphas_cumprod = scheduler.alphas_cumprod[steps[::-1]]
    spaced.set_timesteps(train_steps)
    x = noise
    for place, t in zip(reversed(range(num_steps)), steps, strict=True):
        if guidance == 1.0:
            output = predict(x, t, is_conditional=True)
        elif guidance == 0.0:
            output = predict(x, t, is_conditional=False)
        else:
            unconditional = predict(x, t, is_conditional=False)
            output = unconditional + guidance * (predict(x, t, is_conditional=True) - unconditional)
        x = spaced.step(output, place, x, eta=0.0, return_dict=False)[0]
    return x


def noised_target(
    scheduler: DDIMScheduler, x0: Tensor, noise: Tensor, steps: Tensor
) -> tuple[Tensor, Tensor]:
    """x_t of the forward process, and what the denoiser should say about it."""
    index = typing.cast(torch.IntTensor, steps)
    x = scheduler.add_noise(x0, noise, index)
    kind = scheduler.config["prediction_type"]
    if kind == "sample":
        return x, x0
    if kind == "epsilon":
        return x, noise
    return x, scheduler.get_velocity(x0, noise, index)


def weighted_loss(output: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean squared error [rows, size], rows weighted [rows]."""
    each = F.mse_loss(output, target, reduction="none").mean(dim=1)
    return (each * weight).sum() / weight.sum().clamp_min(1e-8)
