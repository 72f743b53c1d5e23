"""Differential privacy of a device's updates over a frozen A, one device against the cloud and air.

Where A is frozen and known to all (FFA-LoRA, Sun et al. 2024, arXiv 2403.12313), an update is
linear in what was trained, B, and its norm bounds what a device's text can change. Where both
factors are trained, the product of two noised factors has no such bound; there is no mechanism for
it here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from airllm.lora.adapter import Adapter

_NOISE_STREAM = 84


@dataclass(frozen=True, slots=True)
class Privacy:
    """The Gaussian mechanism on the change of B in a round."""

    clip: float
    """Frobenius norm, over all projections, that a round's change is cut to"""
    noise: float
    """standard deviation of the noise over the sensitivity, which is twice ``clip``: any text of
    the device could have been any other"""
    seed: int

    def privatise(self, before: Adapter, after: Adapter, key: tuple[int, ...]) -> Adapter:
        """``after``, the change of its up factors clipped and noised; ``key`` tells draws apart.

        What is computed from the result has no further cost. The noise comes from the run's seed,
        so that runs can be repeated; whoever knows the seed can subtract it.
        """
        change = [(a - b).double() for a, b in zip(after.up, before.up, strict=True)]  # [out, rank]
        norm = math.sqrt(sum(float(c.square().sum()) for c in change))
        factor = min(1.0, self.clip / max(norm, 1e-300))
        sequence = np.random.SeedSequence(self.seed, spawn_key=(_NOISE_STREAM, *key))
        rng = np.random.default_rng(sequence)
        scale = 2.0 * self.clip * self.noise
        noised = [
            b + (factor * c + scale * torch.from_numpy(rng.standard_normal(c.shape))).float()
            for b, c in zip(before.up, change, strict=True)
        ]
        return Adapter(after.down, tuple(noised))
