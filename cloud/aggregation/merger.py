"""Devices' updates merged into the global adapter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from airllm.lora.adapter import Adapter, accumulate
from channel.aircomp import align
from channel.streams import rng_for
from cloud.aggregation.aggregate import AGGREGATORS, Aggregator, air_aggregator
from cloud.aggregation.methods import FederatedConfig
from cloud.aggregation.robust import ROBUST
from cloud.clients.inspection import Inspector
from cloud.training.adapter_source import GlobalAdapter

_AIR_STREAM = 93
_MOST_EXAMPLES = 10.0  # times the median over devices: more counts as this


class Merger:
    """Weighs updates, aggregates them by the configured method, and takes the result in."""

    def __init__(
        self,
        adapter: GlobalAdapter,
        config: FederatedConfig,
        inspector: Inspector,
        *,
        adapter_rank: int,
        seed: int,
        aggregator: Aggregator | None = None,
    ) -> None:
        """``adapter_rank`` is the rank of the global adapter; ``aggregator`` takes the place of the
        named one, and what it gives is inspected."""
        self.adapter, self.config, self.inspector = adapter, config, inspector
        self.adapter_rank, self.seed, self._own = adapter_rank, seed, aggregator
        self.num_examples: dict[int, int] = {}
        """of each device, as it said at the deployment: who could change its weight later could
        take over the mean"""

    def merge(
        self,
        devices: Sequence[int],
        updates: Sequence[Adapter],
        discounts: Sequence[float] = (),
        aggregator: Aggregator | None = None,
    ) -> None:
        """Take devices' updates into the global adapter by the configured aggregator, or the one
        given.

        ``discounts`` [updates] multiply their weights, and the step as a whole by their mean: a
        buffer of stale changes moves less (FedBuff, Nguyen et al. 2022).
        """
        if not updates:
            return
        weights = self.weights(devices, updates)
        step = 1.0
        if discounts:
            step = float(weights @ np.array(discounts) / weights.sum())
            weights = weights * np.array(discounts)
        aggregator = aggregator or self._own
        aggregator = aggregator or (AGGREGATORS | ROBUST)[self.config.aggregator]
        merged = aggregator(updates, list(weights), self.adapter_rank)
        if self._own is not None:
            self.inspector.check_merged(
                merged,
                max_rank=self.adapter_rank,
                num_updates=len(updates),
                name=self.config.aggregator,
            )
        if self.config.is_factored:
            self.adapter.replace(merged.completed(self.adapter.adapter))
        elif self.config.is_absolute:
            self.adapter.replace(merged)
        else:
            rate = self.config.server_learning_rate * step
            change = merged.scaled(rate)
            self.adapter.replace(accumulate(self.adapter.adapter, change, self.adapter_rank))

    def superposition(self, round_index: int, snr_db: Sequence[float]) -> Aggregator:
        """The channel's own sum, at unit noise power: |h|^2 is then the SNR."""
        threshold = float(10.0 ** (self.config.air_threshold_db / 10.0))
        amplitude = 10.0 ** (np.array(snr_db) / 20.0)
        alignment = align(amplitude, max_power=1.0, inversion="truncated", threshold=threshold)
        rng = rng_for(self.seed, _AIR_STREAM, round_index)
        return air_aggregator(alignment, noise_power=1.0, rng=rng)

    def weights(self, devices: Sequence[int], updates: Sequence[Adapter]) -> NDArray[np.float64]:
        """[updates] of the mean, not normalised."""
        if self.config.weights == "uniform":
            return np.ones(len(devices))
        if self.config.weights == "norm":
            return np.array([u.norm() for u in updates]) + 1e-12
        # What a device says of itself must not make the mean its own.
        usual = float(np.quantile(list(self.num_examples.values()), 0.5, method="lower"))
        most = _MOST_EXAMPLES * max(usual, 1.0)
        return np.array([min(max(self.num_examples[d], 1), most) for d in devices], dtype=float)
