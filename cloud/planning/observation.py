"""What a policy sees of a round, built in one place for downlink, uplink and environment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airllm.lora.payload import overhead_bits
from airllm.policies.knapsack import Ranks
from airllm.policies.observation import RoundObservation
from cloud.planning.plan import LinkReport

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Observer:
    """What stays the same over a run."""

    num_rounds: int
    deadline_s: float
    is_shared_band: bool
    bits_per_rank: Array
    """[projections] payload bits of one component"""
    r_max: int
    is_absolute: bool
    """an update replaces what a device holds, so that being sent anything costs what that is
    worth"""

    def observe(
        self,
        round_index: int,
        links: Sequence[LinkReport],
        *,
        entropy: Sequence[float],
        oov_rate: Sequence[float],
        loss: Array,
        first_loss: Array,
        previous_ranks: Ranks,
        energy: Array,
        utility: Array,
        **more: Any,
    ) -> RoundObservation:
        """One row for each device; ``more`` are the optional fields of `RoundObservation`."""
        fixed_charge = np.zeros(len(links))
        if self.is_absolute:
            fixed_charge = np.maximum(np.nan_to_num(first_loss - loss), 0.0)
        return RoundObservation(
            round_index=round_index,
            num_rounds=self.num_rounds,
            snr_db=np.array([link.snr_db for link in links]),
            bandwidth_hz=np.array([link.bandwidth_hz for link in links]),
            planned_rate_bps=np.array([link.planned_rate_bps for link in links]),
            deadline_s=self.deadline_s,
            is_shared_band=self.is_shared_band,
            entropy=np.array(entropy),
            oov_rate=np.array(oov_rate),
            loss=loss,
            first_loss=first_loss,
            fixed_charge=fixed_charge,
            previous_ranks=previous_ranks,
            bits_per_rank=self.bits_per_rank,
            overhead_bits=float(overhead_bits(len(self.bits_per_rank))),
            r_max=self.r_max,
            energy=energy,
            utility=utility,
            **more,
        )
