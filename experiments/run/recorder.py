"""What a run leaves on disk: its rounds, ranks, summary and checkpoints."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from airllm.checkpoint import restore, state_of
from airllm.lora.adapter import Adapter
from cloud.rounds.record import RoundResult, Transfers
from experiments.assembly.workbench import Workbench
from experiments.config.loader import dump_config
from experiments.config.schema import ExperimentConfig
from experiments.results.folder import (
    RoundsWriter,
    rows_until,
    write_bytes,
    write_summary,
    write_text,
)
from experiments.run.checkpoints import Checkpoints, alone_in
from experiments.run.summary import SUMMARISED, Array, bits_until, columns_of, summarise


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
        self._seen = [columns_of(rows_until(path, own["mark"]) or [])]
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
                float(np.mean([r.loss for r in result.record.before])),
                float(np.mean([r.accuracy for r in result.record.before])),
            )
        if self._writer is None:
            self._begin()
        rows = rows_of(result)
        self._seen.append(columns_of(rows))
        self._ranks.append(result.record.down.ranks)
        if self._writer is not None:
            self._writer.write(rows)
        self._checkpoint()
        if self._on_round is not None:
            self._on_round(result.round_index + 1, self.config.rounds)

    def finish(self, master: Adapter) -> dict[str, Any]:
        """Write the summary; its presence says that the run is complete.

        ``master`` is the whole master after the last round: what nothing on the air could beat.
        """
        columns = {key: np.concatenate([part[key] for part in self._seen]) for key in SUMMARISED}
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
        zip(result.links, result.record.before, result.after, strict=True)
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
                **_transfer(result.record.down, d),
                **{f"uplink_{key}": v for key, v in _transfer(result.record.up, d).items()},
                "overhead_bits": result.record.overhead_bits[d],
                "energy_j": result.energy_j[d],
                "compute_s": result.record.compute_s[d],
                "round_s": result.round_s,
                "answered": bool(result.record.is_answered[d]),
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
