"""One run in one row: its state after the last round, and sums and means over all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.config.schema import ExperimentConfig
from experiments.run.privacy_accounting import epsilon

Array = NDArray[np.float64]

# What the summary is made of: a run keeps these of all its rows, and not the rows.
SUMMARISED = (
    "round", "accuracy", "loss", "payload_bits", "sent_bits", "delivered_bits", "overhead_bits",
    "uplink_sent_bits", "uplink_delivered_bits", "delivered", "reward", "delay_s",
    "uplink_delay_s", "energy_j",
)  # fmt: skip


def columns_of(rows: list[dict[str, Any]]) -> dict[str, Array]:
    """The columns that the summary is made of, [rows] each."""
    return {key: np.array([row[key] for row in rows], dtype=np.float64) for key in SUMMARISED}


def summarise(columns: Mapping[str, Array], config: ExperimentConfig) -> dict[str, Any]:
    """The run in one row: the state after the last round, sums and means over all rounds.

    ``columns`` are those of rounds.csv, [rounds x devices] each.
    """
    last = columns["round"] == config.rounds
    sent = columns["payload_bits"] > 0
    every = np.ones(len(last), dtype=bool)

    def mean(key: str, of: NDArray[np.bool_]) -> float:
        return float(np.mean(columns[key][of]))

    summary: dict[str, Any] = {
        "policy": config.policy.name,
        "snr_db": config.channel.snr_db,
        "seed": config.seed,
        "rounds": config.rounds,
        "num_devices": config.num_devices,
        "accuracy": mean("accuracy", last),
        "loss": mean("loss", last),
        # Over rounds and devices: where rounds last alike, the area under the curve against time.
        "mean_accuracy": mean("accuracy", every),
        "mean_loss": mean("loss", every),
        "payload_bits": mean("payload_bits", every),
        "sent_bits": mean("sent_bits", every),
        "delivered_bits": mean("delivered_bits", every),
        "total_delivered_bits": float(sum(_delivered_bits(columns).tolist())),
        "overhead_bits": mean("overhead_bits", every),
        "uplink_sent_bits": mean("uplink_sent_bits", every),
        "uplink_delivered_bits": mean("uplink_delivered_bits", every),
        # Of the updates that were sent.
        "delivered_rate": mean("delivered", sent) if sent.any() else float("nan"),
        "reward": mean("reward", every),
        # The longest transfer of a round, down and up; the sum over rounds.
        "airtime_s": float(
            sum(
                columns[key][columns["round"] == r].max()
                for r in range(1, config.rounds + 1)
                for key in ("delay_s", "uplink_delay_s")
            )
        ),
        "energy_j": float(sum(columns["energy_j"].tolist())),
    }
    federated = config.federated
    if config.mode == "federated" and federated.privacy_noise:
        # As if every device had taken part in every round.
        summary["privacy_epsilon"] = epsilon(
            federated.privacy_noise, config.rounds, federated.privacy_delta
        )
    return summary


def _delivered_bits(columns: Mapping[str, Array]) -> Array:
    """Of a device and round, in both directions."""
    return columns["delivered_bits"] + columns["uplink_delivered_bits"]


def bits_until(columns: Mapping[str, Array], accuracy: float) -> float:
    """Bits delivered per device until the devices' mean accuracy first reaches a value.

    Counted to the end of the round in which it does; not a number where it never does.
    """
    bits, delivered = 0.0, _delivered_bits(columns)
    for r in range(1, int(columns["round"].max(initial=0)) + 1):
        own = columns["round"] == r
        bits += float(np.mean(delivered[own]))
        if np.mean(columns["accuracy"][own]) >= accuracy:
            return bits
    return float("nan")
