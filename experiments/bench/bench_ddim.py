"""What the DDIM's number of steps, its prediction and its guidance are worth, by a closed form.

python -m experiments.bench.bench_ddim

One hundred parallel channels of gains g share a power P; water-filling is best (Cover and Thomas,
Elements of Information Theory, 9.4). Left: a denoiser that is shown g learns the best allocation;
rate of its samples over the best rate, by sampling steps and by what it predicts. Right: a denoiser
learns from allocations that somebody else made, labelled by whether they did better than this
somebody does on average (arXiv 2505.23458); the guidance weight w asks for more of what was better.
Prints the tables and draws docs/images/ddim.png. One thread.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from typing import Any, cast

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from airllm.rl.ddim import (
    PREDICTIONS,
    DdimConfig,
    Prediction,
    make_scheduler,
    noised_target,
    sample,
)
from airllm.rl.denoiser import Denoiser

CHANNELS, POWER = 100, 10.0
_BATCH, _UPDATES, _RATE = 256, 1200, 2e-3
_STEPS = (1, 2, 5, 10, 20, 50)
_GUIDANCE = (0.0, 1.0, 1.5, 3.0, 8.0, 16.0, 32.0, 64.0, 128.0)
_NOISE = 0.7  # of the allocations that are learned from, in nats of a channel's power
_IMAGE = Path(__file__).parents[2] / "docs" / "images" / "ddim.png"

Array = NDArray[np.float64]


def water_filling(gain: Array, power: float) -> Array:
    """p_i = max(mu - 1 / g_i, 0) with sum p_i = ``power``; gain [rows, channels] > 0."""
    floor = np.sort(1.0 / gain, axis=1)
    level = (power + np.cumsum(floor, axis=1)) / np.arange(1, gain.shape[1] + 1)
    active = (level > floor).sum(axis=1)  # channels above the water are the last in line
    mu = np.take_along_axis(level, active[:, None] - 1, axis=1)
    return np.maximum(mu - 1.0 / gain, 0.0)


def rate(gain: Array, power: Array) -> Array:
    """[rows] bit/s/Hz."""
    return np.log2(1.0 + gain * power).sum(axis=1)


def onto_budget(power: Array) -> Array:
    """Negative powers are none, and the sum is what there is."""
    positive = np.maximum(power, 1e-12)
    return POWER * positive / positive.sum(axis=1, keepdims=True)


def shown(gain: Array) -> Tensor:
    """The condition: gains in nats."""
    return torch.as_tensor(np.log(gain).clip(-4.0, 2.0), dtype=torch.float32)


def learn_best(prediction: Prediction, *, updates: int = _UPDATES, seed: int = 0) -> Denoiser:
    """A denoiser of the best allocation, in thrice the mean power around a half."""
    return _learn(
        prediction, CHANNELS, updates, seed,
        lambda gain, rng: (water_filling(gain, POWER) * _scale() - 0.5, shown(gain)),
    )  # fmt: skip


def sample_best(model: Denoiser, prediction: Prediction, gain: Array, num_steps: int) -> Array:
    """[rows, channels] powers that the denoiser proposes, put onto the budget."""
    condition = shown(gain)

    def predict(x: Tensor, t: int, *, is_conditional: bool) -> Tensor:
        return model(x, torch.full((len(x),), t), condition)

    noise = torch.randn(gain.shape, generator=torch.Generator().manual_seed(1))
    found = sample(
        make_scheduler(DdimConfig(prediction=prediction)), predict, noise,
        num_steps=num_steps, guidance=1.0,
    )  # fmt: skip
    return onto_budget((found.double().numpy() + 0.5) / _scale())


def _scale() -> float:
    return CHANNELS / (3.0 * POWER)


def softmax_power(priority: Array) -> Array:
    """What the allocations that are learned from do: shares by e^priority."""
    return onto_budget(np.exp(priority - priority.max(axis=1, keepdims=True)))


def behaviour(gain: Array, rng: np.random.Generator) -> Array:
    """Priorities [rows, channels] of somebody who follows the gains, roughly."""
    return 0.5 * np.log(gain) + _NOISE * rng.standard_normal(gain.shape)


def learn_labelled(*, seed: int = 0) -> Denoiser:
    """A denoiser of the behaviour's priorities, told which did better than it does on average."""

    def rows(gain: Array, rng: np.random.Generator) -> tuple[Array, Tensor]:
        mean = np.mean([rate(gain, softmax_power(behaviour(gain, rng))) for _ in range(4)], axis=0)
        priority = behaviour(gain, rng)
        label = np.where(rate(gain, softmax_power(priority)) > mean, 1.0, -1.0)
        label = np.where(rng.random(len(gain)) < 0.1, 0.0, label)  # 0: no label
        return priority, torch.cat([shown(gain), _label(label)], dim=1)

    return _learn("sample", CHANNELS + 1, _UPDATES, seed, rows)


def sample_labelled(model: Denoiser, gain: Array, guidance: float) -> Array:
    """[rows, channels] powers by samples that are guided towards the label "better"."""
    condition = shown(gain)

    def predict(x: Tensor, t: int, *, is_conditional: bool) -> Tensor:
        label = _label(np.full(len(x), float(is_conditional)))
        return model(x, torch.full((len(x),), t), torch.cat([condition, label], dim=1))

    noise = torch.randn(gain.shape, generator=torch.Generator().manual_seed(1))
    found = sample(
        make_scheduler(DdimConfig()), predict, noise, num_steps=10, guidance=guidance
    )  # fmt: skip
    return softmax_power(found.double().numpy())


def _label(label: Array) -> Tensor:
    return torch.as_tensor(label, dtype=torch.float32)[:, None]


def _learn(prediction, num_context, updates, seed, rows) -> Denoiser:  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = Denoiser(CHANNELS, num_context, hidden=256, num_blocks=2, generator=generator)
    scheduler = make_scheduler(DdimConfig(prediction=prediction))
    optimiser = torch.optim.Adam(model.parameters(), lr=_RATE)
    for update in range(updates):
        optimiser.param_groups[0]["lr"] = _RATE * (1.0 - update / updates)
        target_rows, condition = rows(rng.exponential(size=(_BATCH, CHANNELS)), rng)
        x0 = torch.as_tensor(target_rows, dtype=torch.float32)
        steps = torch.randint(1000, (_BATCH,), generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        x, target = noised_target(scheduler, x0, noise, steps)
        loss = (model(x, steps, condition) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


def main() -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(1000)
    gain = rng.exponential(size=(256, CHANNELS))
    best = rate(gain, water_filling(gain, POWER))

    def share(power: Array) -> float:
        return float((rate(gain, power) / best).mean())

    equal = share(np.full(gain.shape, POWER / CHANNELS))
    print(f"{CHANNELS} channels, {len(gain)} draws, {_UPDATES} updates of {_BATCH} rows")
    print(f"share of the best rate; equal powers: {equal:.3f}")
    print("prediction    " + "".join(f"{n:>8d}" for n in _STEPS) + "  sampling steps")
    by_steps = {}
    for prediction in PREDICTIONS:
        model = learn_best(prediction)
        by_steps[prediction] = [
            share(sample_best(model, prediction, gain, n)) for n in _STEPS
        ]  # fmt: skip
        print(f"{prediction:14s}" + "".join(f"{v:8.3f}" for v in by_steps[prediction]), flush=True)
    model = learn_labelled()
    somebody = share(softmax_power(behaviour(gain, rng)))
    by_guidance = [share(sample_labelled(model, gain, w)) for w in _GUIDANCE]
    print(f"learned from allocations whose share is {somebody:.3f}, 10 sampling steps")
    print("guidance w    " + "".join(f"{w:8.1f}" for w in _GUIDANCE))
    print("share         " + "".join(f"{v:8.3f}" for v in by_guidance))
    _draw(by_steps, by_guidance, equal, somebody)


def _draw(
    by_steps: dict[Prediction, list[float]], by_guidance: list[float], equal: float, somebody: float
) -> None:
    style = {"font.size": 8.5, "axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context(cast(Any, style)):
        figure = Figure(figsize=(5.6, 2.5), layout="constrained")
        left, right = figure.subplots(1, 2)
        looks = (("o-", "#0072B2"), ("s--", "#D55E00"), ("^:", "#009E73"))
        for (name, values), (look, colour) in zip(by_steps.items(), looks, strict=True):
            label = name.removesuffix("_prediction")
            left.plot(_STEPS, values, look, color=colour, markersize=4, label=label)
        left.axhline(equal, color="0.4", linewidth=0.8, linestyle=(0, (1, 2)))
        left.annotate("equal powers", (1.0, equal), xytext=(0, 3), textcoords="offset points")
        left.set_xscale("log")
        left.set_xticks(_STEPS, [str(n) for n in _STEPS])
        left.set_xticks([], minor=True)
        left.set_xlabel("sampling steps")
        left.set_ylabel("rate / best rate")
        left.legend(title="predicts", frameon=False, fontsize=7.5, title_fontsize=7.5)
        right.plot(_GUIDANCE, by_guidance, "o-", markersize=4, color="#0072B2")
        right.axhline(somebody, color="0.4", linewidth=0.8, linestyle=(0, (1, 2)))
        right.annotate(
            "allocations learned from", (_GUIDANCE[-1], somebody), xytext=(0, 3),
            textcoords="offset points", ha="right",
        )  # fmt: skip
        right.set_xscale("symlog", linthresh=1.0)
        ticks = (0.0, 1.0, 3.0, 8.0, 32.0, 128.0)
        right.set_xticks(ticks, [f"{w:g}" for w in ticks])
        right.set_xticks([], minor=True)
        right.set_xlim(-0.15, 170.0)
        right.set_xlabel("guidance weight w")
        right.set_ylabel("rate / best rate")
        figure.savefig(_IMAGE, dpi=200, metadata={"Software": None})


if __name__ == "__main__":
    main()
