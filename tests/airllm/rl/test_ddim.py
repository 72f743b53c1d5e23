"""The sampler against its closed form for a Gaussian, and what guidance means."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from airllm.rl.ddim import (
    PREDICTIONS,
    DdimConfig,
    make_scheduler,
    noised_target,
    sample,
    trailing_steps,
    weighted_loss,
)
from airllm.rl.denoiser import Denoiser
from experiments.bench import bench_ddim as bench

MEAN, STD = 0.3, 0.2


def exact_predictor(scheduler, kind):
    """What the ideal denoiser says when x0 ~ N(MEAN, STD^2)."""

    def predict(x, t, *, is_conditional):
        a = scheduler.alphas_cumprod[t].double()
        variance = a * STD**2 + 1 - a
        epsilon = (1 - a).sqrt() * (x - a.sqrt() * MEAN) / variance
        x0 = (x - (1 - a).sqrt() * epsilon) / a.sqrt()
        return {
            "epsilon": epsilon, "sample": x0,
            "v_prediction": a.sqrt() * epsilon - (1 - a).sqrt() * x0,
        }[kind]  # fmt: skip

    return predict


def affine_map(alpha, steps):
    """(slope, offset) of the sampler: each step is affine in x, and they multiply up."""
    slope, offset = 1.0, 0.0
    for now, then in pairwise([*steps, -1]):  # the last entry: no noise left
        a, b = alpha[now], alpha[then]
        gain = np.sqrt(1 - a) / (a * STD**2 + 1 - a)  # epsilon = gain (x - sqrt(a) MEAN)
        scale = np.sqrt(b / a)
        lead = np.sqrt(1 - b) - scale * np.sqrt(1 - a)  # x' = scale x + lead epsilon
        slope, offset = (
            slope * (scale + lead * gain),
            offset * (scale + lead * gain) - lead * gain * np.sqrt(a) * MEAN,
        )
    return slope, offset


def alphas(schedule, train_steps):
    first, last = 0.1 / train_steps, min(20 / train_steps, 0.999)
    betas = (
        np.linspace(first, last, train_steps) if schedule == "linear"
        else np.linspace(np.sqrt(first), np.sqrt(last), train_steps) ** 2
    )  # fmt: skip
    return np.append(np.cumprod(1 - betas), 1.0)


def assert_affine(config, schedule, slope, offset):
    """diffusers keeps alphas in fp32: 6e-8 of 1 - alpha, which is 1e-4 or more, is 3e-6 of x."""
    scheduler = make_scheduler(config, beta_schedule=schedule)
    noise = torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)[:, None]
    predict = exact_predictor(scheduler, config.prediction)
    got = sample(scheduler, predict, noise, num_steps=config.sampling_steps, guidance=1.0)
    np.testing.assert_allclose(got.numpy(), slope * noise.numpy() + offset, atol=1e-4)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize(
    ("schedule", "num_steps", "std"),
    [
        ("linear", 10, 0.097), ("linear", 50, 0.174), ("linear", 200, 0.193),
        ("scaled_linear", 10, 0.139), ("scaled_linear", 50, 0.185), ("scaled_linear", 200, 0.196),
    ],
)  # fmt: skip
def test_an_exact_score_gives_the_affine_map_of_the_closed_form(kind, schedule, num_steps, std):
    steps = range(999, -1, -1000 // num_steps)
    slope, offset = affine_map(alphas(schedule, 1000), steps)
    config = DdimConfig(prediction=kind, sampling_steps=num_steps)
    assert_affine(config, schedule, slope, offset)
    assert slope == pytest.approx(std, abs=6e-4)


PAIRS = [
    (1000, 3), (1000, 7), (1000, 30), (1000, 501), (1000, 600), (1000, 999), (1000, 1000),
    (999, 2), (960, 7), (100, 30), (100, 99), (50, 40),
    *((train_steps, n) for train_steps in (2, 7, 24) for n in range(1, train_steps + 1)),
]  # fmt: skip


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize(("train_steps", "num_steps"), PAIRS)
def test_steps_need_not_divide_those_of_training(kind, train_steps, num_steps):
    """diffusers by itself steps beside the grid: 600 of 1000 gave N(0.7, 0.3^2) as 0.54, 0.49."""
    steps = trailing_steps(train_steps, num_steps)
    slope, offset = affine_map(alphas("scaled_linear", train_steps), steps)
    config = DdimConfig(prediction=kind, train_steps=train_steps, sampling_steps=num_steps)
    assert_affine(config, "scaled_linear", slope, offset)


@pytest.mark.parametrize("num_steps", [300, 600, 999])
def test_many_steps_draw_what_the_score_is_of(num_steps):
    """The spread narrows with 1 / steps: 0.196 of 0.2 at 200."""
    config = DdimConfig(sampling_steps=num_steps)
    scheduler = make_scheduler(config)
    ends = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    low, high = sample(
        scheduler, exact_predictor(scheduler, "sample"), ends, num_steps=num_steps, guidance=1.0
    ).flatten()
    assert (low + high).item() / 2 == pytest.approx(MEAN, abs=0.01)
    assert (high - low).item() / 2 == pytest.approx(STD, abs=0.005)


@pytest.mark.parametrize("train_steps", range(1, 61))
def test_trailing_steps_are_evenly_apart_from_the_last_to_the_first(train_steps):
    for num_steps in range(1, train_steps + 1):
        steps = trailing_steps(train_steps, num_steps)
        assert (len(steps), steps[0]) == (num_steps, train_steps - 1)
        gaps = -np.diff([*steps, -1])
        assert set(gaps) <= {train_steps // num_steps, -(-train_steps // num_steps)}
    for num_steps in (0, train_steps + 1):
        with pytest.raises(ValueError, match=f"num_steps must be in 1 to .*, got {num_steps}"):
            trailing_steps(train_steps, num_steps)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize(("train_steps", "num_steps"), [(1000, 10), (1000, 50), (48, 48), (20, 1)])
@pytest.mark.parametrize("clip", [False, True])
def test_where_steps_divide_it_is_diffusers_to_the_bit(kind, train_steps, num_steps, clip):
    config = DdimConfig(prediction=kind, train_steps=train_steps, sampling_steps=num_steps)
    scheduler = make_scheduler(config, clip=clip)

    def predict(x, t, *, is_conditional):
        return (0.3 * x + t / train_steps).sin()

    x = noise = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(num_steps)
    expected = scheduler.timesteps.tolist()
    for t in expected:
        output = predict(x, t, is_conditional=True)
        x = scheduler.step(output, t, x, eta=0.0, return_dict=False)[0]
    got = sample(scheduler, predict, noise, num_steps=num_steps, guidance=1.0)
    assert torch.equal(got, x)
    assert scheduler.timesteps.tolist() == expected


def test_guidance_zero_is_unconditional_one_conditional_and_two_beyond():
    scheduler = make_scheduler(DdimConfig())
    noise = torch.zeros(1, 1)

    def predict(x, t, *, is_conditional):
        return torch.full_like(x, 0.5 if is_conditional else 0.2)

    for guidance, expected in ((0.0, 0.2), (1.0, 0.5), (2.0, 0.8)):
        got = sample(scheduler, predict, noise, num_steps=5, guidance=guidance)
        assert got.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("guidance", "asked"), [(0.0, {False}), (1.0, {True})])
def test_without_guidance_each_step_asks_once(guidance, asked):
    calls = []

    def predict(x, t, *, is_conditional):
        calls.append(is_conditional)
        return torch.zeros_like(x)

    sample(make_scheduler(DdimConfig()), predict, torch.zeros(1, 1), num_steps=5, guidance=guidance)
    assert (len(calls), set(calls)) == (5, asked)


def test_a_denoiser_is_drawn_from_its_generator_alone_and_adds_nothing_at_first():
    def model(seed):
        generator = torch.Generator().manual_seed(seed)
        return Denoiser(3, 2, hidden=8, num_blocks=1, generator=generator)

    before = torch.random.get_rng_state()
    first, again, other = model(0), model(0), model(1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.enter.weight, again.enter.weight)
    assert not torch.equal(first.enter.weight, other.enter.weight)
    output = first(
        torch.randn(4, 3, generator=torch.Generator()), torch.arange(4), torch.ones(4, 2)
    )
    assert torch.equal(output, torch.zeros(4, 3))


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_a_denoiser_learns_a_conditional_mean(kind):
    """x0 = +-0.7 by condition, with little noise: samples land where their condition says."""
    scheduler = make_scheduler(DdimConfig(prediction=kind))
    generator = torch.Generator().manual_seed(0)
    model = Denoiser(3, 1, hidden=64, num_blocks=2, generator=generator)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(300):
        condition = torch.randint(2, (128, 1), generator=generator) * 2.0 - 1.0
        x0 = 0.7 * condition.expand(-1, 3)
        steps = torch.randint(1000, (128,), generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        x, target = noised_target(scheduler, x0, noise, steps)
        loss = weighted_loss(model(x, steps, condition), target, torch.ones(128))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    condition = torch.tensor([[1.0], [-1.0]]).repeat(50, 1)

    def predict(x, t, *, is_conditional):
        return model(x, torch.full((len(x),), t), condition)

    noise = torch.randn(100, 3, generator=generator)
    got = sample(scheduler, predict, noise, num_steps=20, guidance=1.0)
    assert (got - 0.7 * condition).abs().mean() < 0.1


def test_a_denoiser_learns_water_filling():
    """100 parallel channels: the rate of what it samples is within 2 % of the closed form's."""
    gain = np.random.default_rng(7).exponential(size=(64, bench.CHANNELS))
    best = bench.water_filling(gain, bench.POWER)
    np.testing.assert_allclose(best.sum(axis=1), bench.POWER)
    # Optimality: one water level over the channels in use, and no floor of another below it.
    level = np.where(best > 0, best + 1.0 / gain, np.nan)
    assert (np.nanmax(level, axis=1) - np.nanmin(level, axis=1)).max() < 1e-9
    assert (np.where(best > 0, np.inf, 1.0 / gain).min(axis=1) > np.nanmin(level, axis=1)).all()
    model = bench.learn_best("sample", updates=500)
    found = bench.sample_best(model, "sample", gain, 10)
    np.testing.assert_allclose(found.sum(axis=1), bench.POWER)
    share = bench.rate(gain, found) / bench.rate(gain, best)
    assert share.mean() > 0.98
    assert share.max() <= 1.0 + 1e-12
    # Another's gains are no help: it is the condition that it learned from.
    other = bench.sample_best(model, "sample", gain[::-1].copy(), 10)
    assert (bench.rate(gain, other) / bench.rate(gain, best)).mean() < 0.6


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear"])
@pytest.mark.parametrize("steps", [2, 5, 10, 50, 100, 1000])
def test_the_last_step_is_noise_however_many_there_are(steps, schedule):
    """The sampler starts there, from noise alone."""
    config = DdimConfig(train_steps=steps, sampling_steps=1)
    scheduler = make_scheduler(config, beta_schedule=schedule)
    assert scheduler.alphas_cumprod[-1] < 1e-3
    assert (scheduler.betas > 0).all()
    assert (scheduler.betas < 1).all()
    first = scheduler.alphas_cumprod[0]
    assert first > 0.9


def test_rows_of_weight_zero_teach_nothing():
    output, target = torch.tensor([[1.0], [5.0]]), torch.tensor([[0.0], [0.0]])
    assert weighted_loss(output, target, torch.tensor([1.0, 0.0])) == 1.0
