"""Who takes part in a round, and who falls silent in the middle of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STAGES = ("before", "download", "training", "upload")
"""moments at which a device may drop out: before it is asked, during its download, after the
download and before the upload, during the upload"""

_SAMPLE_STREAM, _DROP_STREAM = 90, 91


@dataclass(frozen=True, slots=True)
class Dropout:
    """A device that falls silent for the rest of a round."""

    stage: str
    """one of `STAGES`"""
    share: float
    """of the bits of the transfer during which it happens, that were on the air before, 0..1"""


@dataclass(frozen=True, slots=True)
class Participation:
    """Draws keyed by round and device: a device more changes nothing for the others' dropouts."""

    num_devices: int
    sample: int
    """devices asked each round; 0: all"""
    dropout: float
    """probability that a device drops out of a round"""
    seed: int

    def chosen(self, round_index: int) -> list[int]:
        """The devices of a round, drawn without replacement, in order."""
        if not self.sample or self.sample >= self.num_devices:
            return list(range(self.num_devices))
        key = np.random.SeedSequence(self.seed, spawn_key=(_SAMPLE_STREAM, round_index))
        drawn = np.random.default_rng(key).choice(self.num_devices, self.sample, replace=False)
        return sorted(int(d) for d in drawn)

    def dropouts(self, round_index: int) -> dict[int, Dropout]:
        """Who drops out, and when; the four moments are equally likely."""
        drawn = {d: self.dropout_of(round_index, d) for d in self.chosen(round_index)}
        return {device: drop for device, drop in drawn.items() if drop is not None}

    def dropout_of(self, round_index: int, device: int) -> Dropout | None:
        """Whether one device drops out, and when."""
        if not self.dropout:
            return None
        key = np.random.SeedSequence(self.seed, spawn_key=(_DROP_STREAM, round_index, device))
        draw = np.random.default_rng(key).uniform(size=3)
        if draw[0] >= self.dropout:
            return None
        return Dropout(STAGES[int(draw[1] * len(STAGES))], float(draw[2]))
