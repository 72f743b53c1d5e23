"""The projection's own forward and backward passes against plain expressions."""

import pytest
import torch
from torch.nn import functional as F

from airllm.lora.multi_lora_linear import Factors, MultiLoraLinear

DEVICES, TOKENS, IN, OUT, RANK, SCALE = 3, 4, 6, 5, 2, 0.5


@pytest.mark.parametrize("is_dropping", [False, True])
@pytest.mark.parametrize("devices", [1, DEVICES])
def test_gradients_are_those_of_the_plain_expression(devices, is_dropping, float64):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    weight, bias = random(OUT, IN), random(OUT)
    down, up = (t.requires_grad_() for t in (random(devices, RANK, IN), random(devices, RANK, OUT)))
    x = random(devices * TOKENS, IN).requires_grad_()
    keep = random(devices * TOKENS, IN) > 0
    slope = random(devices * TOKENS, OUT)

    dropped = x * keep if is_dropping else x
    low = dropped.view(devices, TOKENS, IN) @ down.mT
    expected = F.linear(x, weight, bias) + SCALE * (low @ up).view(-1, OUT)
    gradients = torch.autograd.grad(expected, [x, down, up], slope)

    own = [torch.zeros_like(down), torch.zeros_like(up)]
    factors = Factors(0, SCALE, down.detach(), up.detach(), *own)
    segments, seen = [(0, devices * TOKENS, factors)], []
    found = MultiLoraLinear.apply(
        x, x * keep if is_dropping else None, torch.zeros((), requires_grad=True),
        weight.T, bias, segments, lambda *pair: seen.append(pair),
    )  # fmt: skip
    (back,) = torch.autograd.grad(found, [x], slope)
    torch.testing.assert_close(found, expected)
    for one, other in zip([back, *own], gradients, strict=True):
        torch.testing.assert_close(one, other)
    ((watched, delta),) = seen
    assert torch.equal(watched, x)
    assert torch.equal(delta, slope)
