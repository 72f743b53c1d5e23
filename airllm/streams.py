"""Random numbers of PyTorch, keyed by what they are for."""

from __future__ import annotations

import numpy as np
import torch


def generator_for(seed: int, *key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Torch's random numbers of one purpose; ``key`` tells purposes, devices and rounds apart."""
    state = np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)
    return torch.Generator(device=device).manual_seed(int(state[0] >> 1))
