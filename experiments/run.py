"""One simulation in the local runtime, and what it leaves on disk."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.serverapp import Grid
from numpy.typing import NDArray

from airllm.checkpoint import Stateful, restore, state_of
from airllm.lora import Adapter
from cloud.local_grid import LocalGrid
from cloud.rounds import RoundResult, Transfers
from cloud.server_app import Standing, run_federation
from edge.client_app import answer_together
from experiments.accounting import epsilon
from experiments.build import Workbench, make_cell, workbench_for
from experiments.checkpoints import Checkpoints, alone_in
from experiments.config import ExperimentConfig
from experiments.config_loader import dump_config
from experiments.flower_apps import client_app, load_device
from experiments.results import RoundsWriter, rows_until, write_bytes, write_summary, write_text

Array = NDArray[np.float64]


class Recorder:
    """Writes config.toml, rounds.csv, ranks.npz and summary.json of one run, and its checkpoints.

    ``parts`` by name are what a checkpoint holds the states of, beside what was recorded; without
    any there are none, and ``is_settled`` says whether these states are those after so many rounds.
    ``is_resuming`` restores them from the newest usable checkpoint.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        workbench: Workbench,
        out: Path | str | None,
        on_round: Callable[[int, int], None] | None = None,
        *,
        parts: Mapping[str, object] | None = None,
        is_resuming: bool = False,
        is_settled: Callable[[int], bool] = lambda done: True,
    ) -> None:
        self.config, self.workbench = config, workbench
        self.out = None if out is None else Path(out)
        self._is_settled = is_settled
        self._on_round, self._parts, self._is_resuming = on_round, parts, is_resuming
        self._ranks: list[np.ndarray] = []
        self._seen: list[dict[str, Array]] = []
        self._head = (np.nan, np.nan)  # loss and accuracy before anything was sent
        self._writer: RoundsWriter | None = None
        self._checkpoints: Checkpoints | None = None
        self._open = ExitStack()

    def __enter__(self) -> Recorder:
        if self.out is None:
            return self
        with ExitStack() as stack:
            stack.enter_context(alone_in(self.out))
            base = self.workbench.base
            self._checkpoints = Checkpoints(
                self.out, dump_config(self.config), self.workbench.splits.fingerprint,
                f"{base.device.type} in {base.precision}", self.config.runtime.checkpoint_s,
            )  # fmt: skip
            size = self._resume(self.out / "rounds.csv") if self._is_resuming else 0
            self._open = stack.pop_all()
        if size:
            self._begin(size)
        return self

    def __exit__(self, *args: object) -> None:
        with self._open:
            self._write_ranks()

    def _begin(self, size: int = 0) -> None:
        """Take the folder over: all of an earlier run but so many bytes of rows, and their
        checkpoint, is gone. Not before there is a row, so that who cannot start costs nothing."""
        if self.out is None:
            return
        assert self._checkpoints is not None
        if not size:
            # They must not outlive the rows that they belong to.
            self._checkpoints.clear()
            (self.out / "ranks.npz").unlink(missing_ok=True)
        # First the rows, which end an old summary: it must never stand beside a new config.
        rows = RoundsWriter(self.out / "rounds.csv", keep=size)
        self._writer = self._open.enter_context(rows)
        write_text(self.out / "config.toml", self._checkpoints.config)

    def _resume(self, path: Path) -> int:
        """Restore everything from a checkpoint; the bytes of rounds.csv that count."""
        assert self._checkpoints is not None
        state = self._checkpoints.load(
            lambda s: rows_until(path, s["recorder"]["mark"]) is not None
        )
        if state is None:
            return 0
        own = state["recorder"]
        self._seen = [_columns(rows_until(path, own["mark"]) or [])]
        self._ranks = list(own["ranks"].astype(np.int64))
        self._head = tuple(own["head"])
        for name, part in (self._parts or {}).items():
            restore(part, state[name])
        return int(own["mark"]["size"])

    def _checkpoint(self) -> None:
        """Write one, if it is time and there is something left to do after it."""
        num_done = len(self._ranks)
        if self._checkpoints is None or self._writer is None or not self._parts:
            return
        if num_done == self.config.rounds or not self._checkpoints.due():
            return
        if not self._is_settled(num_done):
            return
        own = {
            "mark": self._writer.mark(),
            "ranks": np.stack(self._ranks).astype(np.uint8),
            "head": list(self._head),
        }
        parts = {name: state_of(part) for name, part in self._parts.items()}
        self._checkpoints.save(num_done, {"recorder": own, **parts})

    def _write_ranks(self) -> None:
        if self.out is not None and self._ranks:
            data = io.BytesIO()
            np.savez_compressed(
                data,
                ranks=np.stack(self._ranks),  # [rounds, devices, projections]
                projections=np.array([spec.name for spec in self.workbench.base.specs]),
            )
            write_bytes(self.out / "ranks.npz", data.getvalue())

    def record(self, result: RoundResult) -> None:
        """Take in one round."""
        if result.round_index == 0:
            self._head = (
                float(np.mean([r.loss for r in result.requests])),
                float(np.mean([r.accuracy for r in result.requests])),
            )
        if self._writer is None:
            self._begin()
        rows = rows_of(result)
        self._seen.append(_columns(rows))
        self._ranks.append(result.down.ranks)
        if self._writer is not None:
            self._writer.write(rows)
        self._checkpoint()
        if self._on_round is not None:
            self._on_round(result.round_index + 1, self.config.rounds)

    def finish(self, master: Adapter) -> dict[str, Any]:
        """Write the summary; its presence says that the run is complete.

        ``master`` is the whole master after the last round: what nothing on the air could beat.
        """
        columns = {key: np.concatenate([part[key] for part in self._seen]) for key in _SUMMARISED}
        summary = summarise(columns, self.config)
        bench = self.workbench
        full_loss, full_accuracy = bench.whole(master)
        summary |= {
            "bits_to_95": bits_until(columns, 0.95 * full_accuracy),
            "head_accuracy": self._head[1],
            "head_loss": self._head[0],
            "full_accuracy": full_accuracy,
            "full_loss": full_loss,
            "perplexity": self._perplexity(summary["loss"]),
            "head_perplexity": self._perplexity(self._head[0]),
            "full_perplexity": self._perplexity(full_loss),
            "data_fingerprint": bench.splits.fingerprint,
            "num_train": len(bench.splits.train),
            "num_projections": len(bench.base.specs),
            "precision": bench.base.precision,
            "torch_device": bench.base.device.type,
            "threads": torch.get_num_threads(),
        }
        if self.out is not None:
            self._write_ranks()  # before the summary, whose presence says that all is there
            write_summary(self.out / "summary.json", summary)
        if self._checkpoints is not None:
            self._checkpoints.clear()
        return summary

    def _perplexity(self, loss: float) -> float:
        is_causal = self.config.model.task == "causal"
        return float(np.exp(min(loss, 700.0))) if is_causal else float("nan")


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


# What the summary is made of: a run keeps these of all its rows, and not the rows.
_SUMMARISED = (
    "round", "accuracy", "loss", "payload_bits", "sent_bits", "delivered_bits", "overhead_bits",
    "uplink_sent_bits", "uplink_delivered_bits", "delivered", "reward", "delay_s",
    "uplink_delay_s", "energy_j",
)  # fmt: skip


def _columns(rows: list[dict[str, Any]]) -> dict[str, Array]:
    return {key: np.array([row[key] for row in rows], dtype=np.float64) for key in _SUMMARISED}


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


def run_rounds(
    grid: Grid,
    config: ExperimentConfig,
    out: Path | str | None,
    *,
    on_round: Callable[[int, int], None] | None = None,
    on_result: Callable[[RoundResult], None] = lambda result: None,
    is_stopped: Callable[[], bool] = lambda: False,
    is_resuming: bool = False,
) -> dict[str, Any]:
    """The cloud's side of one run over the grid of any runtime; returns the summary.

    With ``out``, writes config.toml, rounds.csv (flushed every round), ranks.npz and, once
    complete, summary.json there. Runs that share model, data, training and seed share what is
    dear. ``is_resuming`` goes on from the newest checkpoint in ``out``, to the very files that an
    uninterrupted run leaves; where there is none it begins at the beginning. Only a grid that can
    say what its nodes keep has checkpoints.
    """
    if config.runtime.stacked and not (isinstance(grid, LocalGrid) and grid.is_stacked):
        raise ValueError(
            "runtime.stacked computes all devices in one process: take --runtime local, or leave "
            "it false"
        )
    workbench = workbench_for(config)
    cell = make_cell(config.channel, config.num_devices, seed=config.seed)
    service, standing = workbench.service(config), Standing()
    parts: dict[str, object] = {}
    if isinstance(grid, Stateful):
        parts = {"federation": standing, "service": service, "cell": cell, "grid": grid}
    with Recorder(
        config, workbench, out, on_round,
        parts=parts, is_resuming=is_resuming, is_settled=lambda done: done == standing.num_done,
    ) as recorder:  # fmt: skip

        def take(result: RoundResult) -> None:
            recorder.record(result)
            on_result(result)

        run_federation(
            grid,
            cell,
            service,
            on_round=take,
            reply_timeout_s=config.runtime.reply_timeout_s,
            connect_timeout_s=config.runtime.connect_timeout_s,
            is_stopped=is_stopped,
            standing=standing,
        )
        return recorder.finish(service.final())


def run_simulation(
    config: ExperimentConfig,
    out: Path | str | None = None,
    *,
    on_round: Callable[[int, int], None] | None = None,
    is_resuming: bool = False,
) -> dict[str, Any]:
    """Run one simulation in this process; returns the summary and writes what `run_rounds` does.

    Raises ValueError for what the configuration asks and this machine does not have.
    """
    together = partial(answer_together, load_device) if config.runtime.stacked else None
    grid = LocalGrid(
        client_app, config.num_devices, {"config": dump_config(config)}, answer_together=together
    )
    return run_rounds(grid, config, out, on_round=on_round, is_resuming=is_resuming)
