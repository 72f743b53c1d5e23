"""Random numbers by purpose: what one part draws changes nothing for another."""

from __future__ import annotations

import numpy as np


def rng_for(seed: int, *key: int) -> np.random.Generator:
    """An independent stream for a key such as (stream, round).

    Keyed rather than drawn in order. Where one stream serves all devices, they are drawn in the
    order of their numbers, so that a device more changes nothing for those before it.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
