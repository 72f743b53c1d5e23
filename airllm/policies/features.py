"""What the networks of policy ``airllm`` are shown of a round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from airllm.policies.knapsack import fit_budget
from airllm.policies.observation import Array, RoundObservation

Hideable = Literal["link", "complexity", "loss", "round", "utility"]
LARGEST = 1e6  # no number in a row is beyond it
_NUM_THIRDS = 3
_MAX_LOSS = 20.0  # nats; a uniform guess over 100,000 tokens costs 11.5


class Features:
    """Turns a round's observation into one row of numbers for each device.

    A row holds the device's own numbers beside their mean over the devices, so that one network
    with shared weights sees what the others compete with. ``hide`` names groups of `Hideable` that
    are zero, for ablations.
    """

    def __init__(
        self, depths: Sequence[int], kinds: Sequence[str], *, hide: Sequence[str] = ()
    ) -> None:
        self.groups = _groups(depths, kinds)
        of = ["link"] * 4 + ["complexity"] * 2 + ["loss"] * 3 + ["round"]
        of += ["utility"] * (1 + len(self.groups))
        self._shown = np.tile([float(name not in hide) for name in of], 2)

    @property
    def size(self) -> int:
        """Numbers in a row."""
        return len(self._shown)

    def __call__(self, observation: RoundObservation) -> Array:
        """[devices, size]"""
        devices = observation.num_devices
        everywhere_s = observation.unit_cost_s.sum(axis=1)
        with np.errstate(invalid="ignore"):
            ranks_that_fit = np.nan_to_num(observation.budget_s / everywhere_s)
        sharers = devices if observation.is_shared_band else 1
        # A loss that is not a number is as bad as any.
        loss, first_loss = (
            np.clip(np.nan_to_num(x, nan=_MAX_LOSS), -_MAX_LOSS, _MAX_LOSS)
            for x in (observation.loss, observation.first_loss)
        )
        own = [
            np.clip(observation.snr_db, -40.0, 60.0) / 10.0,
            np.log10(np.maximum(observation.planned_rate_bps, 1.0)) / 6.0,
            np.log1p(ranks_that_fit),
            np.full(devices, np.log(sharers) / 3.0),
            observation.entropy,
            observation.oov_rate,
            loss,
            first_loss - loss,
            np.clip(np.nan_to_num(observation.fixed_charge), 0.0, _MAX_LOSS),
            np.full(devices, observation.round_index / max(observation.num_rounds, 1)),
        ]
        # What the greedy rule would earn, in first-order nats: most of what tells rounds apart.
        kept = fit_budget(
            observation.utility,
            observation.unit_cost_s,
            observation.budget_s,
            is_joint=observation.is_shared_band,
        )
        known = np.clip(
            np.nan_to_num(observation.utility), 0.0, 1e30
        )  # [devices, projections, rank]
        is_kept = np.arange(known.shape[2]) < kept[:, :, None]
        own.append(np.log((known * is_kept).sum(axis=(1, 2)) + 1e-3))
        utility = known.sum(axis=2)  # [devices, projections]
        utility = utility / (utility.sum(axis=1, keepdims=True) + 1e-12)
        own += [np.log(utility[:, group].sum(axis=1) + 1e-3) for group in self.groups]
        rows = np.clip(np.nan_to_num(np.stack(own, axis=1)), -LARGEST, LARGEST)
        pooled = np.broadcast_to(rows.mean(axis=0), rows.shape)
        return np.concatenate([rows, pooled], axis=1) * self._shown


def _groups(depths: Sequence[int], kinds: Sequence[str]) -> list[NDArray[np.int64]]:
    """Projections by third of the depth and kind: what utility is summed over."""
    third = np.asarray(depths) * _NUM_THIRDS // (max(depths) + 1)
    names = sorted(set(kinds))
    kind = np.array([names.index(k) for k in kinds])
    found = [
        np.flatnonzero((third == t) & (kind == k))
        for t in range(_NUM_THIRDS)
        for k in range(len(names))
    ]
    return [group for group in found if len(group)]
