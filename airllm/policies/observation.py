"""What the server knows when it decides the ranks of one round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airllm.lora.adapter import Adapter

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RoundObservation:
    """One row per device; plain arrays, so that a thousand devices are one batch."""

    round_index: int
    num_rounds: int
    snr_db: Array
    """[devices] as the device reported it: an estimate, stale by the time it is used"""
    bandwidth_hz: Array
    """[devices]"""
    planned_rate_bps: Array
    """[devices] rate the plan may count on, alone on the band, margin taken off"""
    deadline_s: float
    is_shared_band: bool
    """True: sum over devices of bits/rate must fit the deadline; False: each device's own must"""
    entropy: Array
    """[devices] normalised token entropy of the device's text, 0..1"""
    oov_rate: Array
    """[devices] share of words outside the reference vocabulary, 0..1"""
    loss: Array
    """[devices] measured with the adapter the device holds"""
    first_loss: Array
    """[devices] measured before anything was sent"""
    fixed_charge: Array
    """[devices] nats that a device gives up by being sent anything, because an absolute update
    replaces what it holds; 0 with residual coding"""
    previous_ranks: NDArray[np.int64]
    """[devices, projections] of the round before, zeros at the start"""
    bits_per_rank: Array
    """[projections] payload bits of one component"""
    overhead_bits: float
    """payload bits that are sent whatever the ranks (header, checksum, a sent head)"""
    r_max: int
    energy: Array
    """[devices, projections, rank] squared singular values of the update that could be sent, in
    the order in which components would be sent"""
    utility: Array
    """[devices, projections, rank] of each component by the policy's importance, same order; in
    nats where that is a gain"""
    trained_ranks: NDArray[np.int64] | None = None
    """[projections] ranks the cloud trained under, for policies that follow it (AdaLoRA)"""
    updates: Sequence[Adapter] = ()
    """[devices] the updates that could be sent, for policies that look into them"""
    starts: Sequence[Adapter] = ()
    """[devices] what an update is added to on the device: what it holds (residual coding), or
    nothing (absolute coding)"""

    @property
    def num_devices(self) -> int:
        return len(self.snr_db)

    @property
    def num_projections(self) -> int:
        return len(self.bits_per_rank)

    @property
    def unit_cost_s(self) -> Array:
        """[devices, projections] air time of one component, the device alone on the band.

        Infinite where the link carries nothing.
        """
        return _seconds(self.bits_per_rank[None, :], self.planned_rate_bps[:, None])

    @property
    def budget_s(self) -> Array:
        """[devices] air time each device may plan with, its fixed overhead taken off.

        On a shared band every device gets an equal share of the deadline; decoders that plan
        jointly use the sum.
        """
        share = self.deadline_s / self.num_devices if self.is_shared_band else self.deadline_s
        overhead_s = _seconds(np.array(self.overhead_bits), self.planned_rate_bps)
        return np.maximum(share - overhead_s, 0.0)


def _seconds(bits: Array, rate_bps: Array) -> Array:
    """bits / rate; a link below a bit in a thousand seconds carries nothing."""
    is_alive = rate_bps > 1e-3
    return np.where(is_alive, bits / np.where(is_alive, rate_bps, 1.0), np.inf)
