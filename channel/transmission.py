"""What a link carries once modulation, coding and repetition are chosen and have their say."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from channel.adaptation import (
    block_error_rate,
    cqi_block_error_rate,
    cqi_efficiency,
    finite_blocklength_rate,
    select_cqi,
)
from channel.config import LinkConfig
from channel.errors import arq_expected_tries, arq_residual_loss
from channel.link import shannon_rate_bps

Array = NDArray[np.float64]


def goodput_bps(
    link: LinkConfig, bandwidth_hz: Array | float, true_snr_db: Array, known_snr_db: Array
) -> tuple[Array, Array]:
    """(rate in bit/s, hazard per bit), both [devices].

    Modulation and code are chosen for the SNR that is known; errors happen at the true one. Blocks
    are repeated up to ``max_tries`` times, so the rate is B * efficiency / E[tries]: the spread
    over the hundreds of blocks of a payload is left out. With ``is_reliable`` a block given up is
    sent again from above, and nothing is lost but time. Otherwise the hazard is -log of the
    probability that a bit's block is not given up: a payload of S bits survives with
    exp(-S * hazard).
    Under ``shannon`` the rate is the true capacity, without errors.
    """
    if link.adaptation == "shannon":
        rate = shannon_rate_bps(bandwidth_hz, true_snr_db, link.snr_gap_db)
        return rate, np.zeros_like(rate)
    n = link.block_symbols
    copies_db = 10.0 * np.log10(np.arange(1, link.max_tries + 1))[:, None]  # [tries, 1]
    if link.combining == "none":
        copies_db = np.zeros((1, 1))
    if link.adaptation == "cqi":
        cqi = select_cqi(known_snr_db)
        efficiency = cqi_efficiency(cqi)
        error = cqi_block_error_rate(true_snr_db + copies_db, cqi, n)  # [tries, devices]
    else:
        efficiency = finite_blocklength_rate(known_snr_db, n, link.target_error)
        error = block_error_rate(true_snr_db + copies_db, n, efficiency)
        error = np.where(efficiency > 0, error, 1.0)
    if link.combining == "none":
        tries = arq_expected_tries(error[0], link.max_tries)
        given_up = arq_residual_loss(error[0], link.max_tries)
    else:
        # What k copies decode, k + 1 do too: the errors are nested.
        nested = np.minimum.accumulate(error, axis=0)
        tries, given_up = 1.0 + nested[:-1].sum(axis=0), nested[-1]
    rate_bps = np.asarray(bandwidth_hz) * efficiency / tries
    if link.is_reliable:
        # What is given up costs its tries and comes again: N blocks take N / (1 - loss).
        return rate_bps * (1.0 - given_up), np.zeros_like(rate_bps)
    bits_per_block = efficiency * n
    with np.errstate(divide="ignore", invalid="ignore"):
        hazard = np.where(efficiency > 0, -np.log1p(-given_up) / bits_per_block, np.inf)
    return rate_bps, hazard
