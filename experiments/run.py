"""One simulation in the local runtime, and what it leaves on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.serverapp import Grid

from airllm.lora import Adapter
from cloud.local_grid import LocalGrid
from cloud.rounds import RoundResult, Transfers
from cloud.server_app import run_federation
from experiments.build import Workbench, make_cell, workbench_for
from experiments.config import ExperimentConfig
from experiments.config_loader import dump_config
from experiments.flower_apps import client_app
from experiments.results import RoundsWriter, write_summary, write_text


class Recorder:
    """Writes config.toml, rounds.csv, ranks.npz and summary.json of one run."""

    def __init__(
        self,
        config: ExperimentConfig,
        workbench: Workbench,
        out: Path | None,
        on_round: Callable[[int, int], None] | None = None,
    ) -> None:
        self.config, self.workbench, self.out = config, workbench, out
        self._on_round = on_round
        self._ranks: list[np.ndarray] = []
        self._rows: list[dict[str, Any]] = []
        self._head = (np.nan, np.nan)  # loss and accuracy before anything was sent
        self._writer: RoundsWriter | None = None

    def __enter__(self) -> Recorder:
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            # First the rows, which end an old summary: it must never stand beside a new config.
            self._writer = RoundsWriter(self.out / "rounds.csv")
            write_text(self.out / "config.toml", dump_config(self.config))
        return self

    def __exit__(self, *args: object) -> None:
        if self._writer is not None:
            self._writer.__exit__(*args)
        if self.out is not None and self._ranks:
            np.savez_compressed(
                self.out / "ranks.npz",
                ranks=np.stack(self._ranks),  # [rounds, devices, projections]
                projections=np.array([spec.name for spec in self.workbench.base.specs]),
            )

    def record(self, result: RoundResult) -> None:
        """Take in one round."""
        if result.round_index == 0:
            self._head = (
                float(np.mean([r.loss for r in result.requests])),
                float(np.mean([r.accuracy for r in result.requests])),
            )
        rows = rows_of(result)
        self._rows.extend(rows)
        self._ranks.append(result.down.ranks)
        if self._writer is not None:
            self._writer.write(rows)
        if self._on_round is not None:
            self._on_round(result.round_index + 1, self.config.rounds)

    def finish(self, master: Adapter) -> dict[str, Any]:
        """Write the summary; its presence says that the run is complete.

        ``master`` is the whole master after the last round: what nothing on the air could beat.
        """
        summary = summarise(self._rows, self.config)
        bench = self.workbench
        full_loss, full_accuracy = bench.whole(master)
        summary |= {
            "bits_to_95": bits_until(self._rows, 0.95 * full_accuracy),
            "head_accuracy": self._head[1],
            "head_loss": self._head[0],
            "full_accuracy": full_accuracy,
            "full_loss": full_loss,
            "data_fingerprint": bench.splits.fingerprint,
            "num_train": len(bench.splits.train),
            "num_projections": len(bench.base.specs),
            "precision": bench.base.precision,
            "torch_device": bench.base.device.type,
        }
        if self.out is not None:
            write_summary(self.out / "summary.json", summary)
        return summary


def rows_of(result: RoundResult) -> list[dict[str, Any]]:
    """One row of rounds.csv for each device."""
    rows = []
    for d, (link, request, report) in enumerate(
        zip(result.links, result.requests, result.reports, strict=True)
    ):
        rows.append(
            {
                "round": result.round_index + 1,
                "device": d,
                "time_s": link.time_s,
                "snr_db": link.snr_db,
                "bandwidth_hz": link.bandwidth_hz,
                "rate_bps": link.rate_bps,
                "entropy": request.entropy,
                "oov_rate": request.oov_rate,
                **_transfer(result.down, d),
                **{f"uplink_{key}": v for key, v in _transfer(result.up, d).items()},
                "overhead_bits": result.overhead_bits[d],
                "energy_j": result.energy_j[d],
                "compute_s": result.compute_s[d],
                "round_s": result.round_s,
                "answered": bool(result.is_answered[d]),
                "loss": report.loss,
                "accuracy": report.accuracy,
                "reward": result.reward[d],
            }
        )
    return rows


def _transfer(transfers: Transfers, device: int) -> dict[str, Any]:
    return {
        "rank_sum": int(transfers.ranks[device].sum()),
        "planned_bits": transfers.planned_bits[device],
        "payload_bits": transfers.payload_bits[device],
        "sent_bits": transfers.sent_bits[device],
        "delivered_bits": transfers.delivered_bits[device],
        "delay_s": transfers.delay_s[device],
        "delivered": bool(transfers.is_delivered[device]),
    }


def summarise(rows: list[dict[str, Any]], config: ExperimentConfig) -> dict[str, Any]:
    """The run in one row: the state after the last round, sums and means over all rounds."""
    last = [row for row in rows if row["round"] == config.rounds]
    sent = [row for row in rows if row["payload_bits"] > 0]

    def mean(key: str, of: list[dict[str, Any]]) -> float:
        return float(np.mean([row[key] for row in of]))

    summary: dict[str, Any] = {
        "policy": config.policy.name,
        "snr_db": config.channel.snr_db,
        "seed": config.seed,
        "rounds": config.rounds,
        "num_devices": config.num_devices,
        "accuracy": mean("accuracy", last),
        "loss": mean("loss", last),
        # Over rounds and devices: the area under the curve against virtual time.
        "mean_accuracy": mean("accuracy", rows),
        "mean_loss": mean("loss", rows),
        "payload_bits": mean("payload_bits", rows),
        "sent_bits": mean("sent_bits", rows),
        "delivered_bits": mean("delivered_bits", rows),
        "total_delivered_bits": float(sum(row["delivered_bits"] for row in rows)),
        "overhead_bits": mean("overhead_bits", rows),
        "uplink_sent_bits": mean("uplink_sent_bits", rows),
        "uplink_delivered_bits": mean("uplink_delivered_bits", rows),
        # Of the updates that were sent.
        "delivered_rate": mean("delivered", sent) if sent else float("nan"),
        "reward": mean("reward", rows),
        # Until the last device of a round has what it gets; the sum over rounds.
        "airtime_s": float(
            sum(
                max(row["delay_s"] for row in rows if row["round"] == r)
                for r in range(1, config.rounds + 1)
            )
        ),
        "energy_j": float(sum(row["energy_j"] for row in rows)),
    }
    if config.model.task == "causal":
        summary["perplexity"] = float(np.exp(min(summary["loss"], 700.0)))
    return summary


def bits_until(rows: list[dict[str, Any]], accuracy: float) -> float:
    """Bits delivered per device until the devices' mean accuracy first reaches a value.

    Counted to the end of the round in which it does; not a number where it never does.
    """
    bits = 0.0
    for r in range(1, max((row["round"] for row in rows), default=0) + 1):
        own = [row for row in rows if row["round"] == r]
        bits += float(np.mean([row["delivered_bits"] for row in own]))
        if np.mean([row["accuracy"] for row in own]) >= accuracy:
            return bits
    return float("nan")


def run_rounds(
    grid: Grid,
    config: ExperimentConfig,
    out: Path | None,
    *,
    on_round: Callable[[int, int], None] | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """The cloud's side of one run over the grid of any runtime; returns the summary.

    With ``out``, writes config.toml, rounds.csv (flushed every round), ranks.npz and, once
    complete, summary.json there. Runs that share model, data, training and seed share what is
    dear.
    """
    workbench = workbench_for(config)
    cell = make_cell(config.channel, config.num_devices, seed=config.seed)
    service = workbench.service(config)
    with Recorder(config, workbench, out, on_round) as recorder:
        run_federation(
            grid,
            cell,
            service,
            on_round=recorder.record,
            reply_timeout_s=config.runtime.reply_timeout_s,
            connect_timeout_s=config.runtime.connect_timeout_s,
            is_stopped=is_stopped,
        )
        return recorder.finish(service.final())


def run_simulation(
    config: ExperimentConfig,
    out: Path | None = None,
    *,
    on_round: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Run one simulation in this process; returns the summary and writes what `run_rounds` does.

    Raises ValueError for what the configuration asks and this machine does not have.
    """
    grid = LocalGrid(client_app, config.num_devices, {"config": dump_config(config)})
    return run_rounds(grid, config, out, on_round=on_round)
