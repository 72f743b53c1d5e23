"""The network inside the DDIM: a residual MLP that is told the step and a context."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_NUM_FREQUENCIES = 16


def linear(n_in: int, n_out: int, generator: torch.Generator) -> nn.Linear:
    """nn.Linear with PyTorch's own initial distribution, drawn from ``generator``."""
    layer = nn.utils.skip_init(nn.Linear, n_in, n_out)
    bound = 1.0 / math.sqrt(n_in)
    for parameter in (layer.weight, layer.bias):
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return layer


class Denoiser(nn.Module):
    """Residual MLP on (x_t, step, context); its last layer starts at 0 and so adds nothing yet.

    The step enters as sines and cosines of it at geometrically spaced frequencies (Vaswani et al.
    2017).
    """

    def __init__(
        self,
        size: int,
        num_context: int,
        *,
        hidden: int,
        num_blocks: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.size = size
        self.enter = linear(size + num_context + 2 * _NUM_FREQUENCIES, hidden, generator)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(hidden),
                linear(hidden, hidden, generator),
                nn.Mish(),
                linear(hidden, hidden, generator),
            )
            for _ in range(num_blocks)
        )
        self.leave = linear(hidden, size, generator)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor, steps: Tensor, context: Tensor) -> Tensor:
        """x [rows, size], steps [rows], context [rows, num_context] -> [rows, size]."""
        exponent = torch.arange(_NUM_FREQUENCIES) / _NUM_FREQUENCIES
        angle = steps[:, None] * 10_000.0**-exponent  # [rows, frequencies]
        h = self.enter(torch.cat([x, context, angle.sin(), angle.cos()], dim=1))
        for block in self.blocks:
            h = h + block(h)
        return self.leave(h)
