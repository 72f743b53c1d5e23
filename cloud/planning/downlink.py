"""The cloud's side of a round: what to send to whom, and what came of it. Knows no Flower."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from airllm.checkpoint import restore, state_of
from airllm.lora.adapter import Adapter
from airllm.lora.payload import PayloadConfig, bits_per_rank, encode
from airllm.lora.residuals import Residuals, residuals_of
from airllm.lora.sensitivity import Importance
from airllm.models.base import BaseModel
from airllm.models.batches import Examples
from airllm.models.head import Head
from airllm.policies.base import RankPolicy, RoundFeedback, decide
from airllm.policies.knapsack import Ranks
from airllm.policies.observation import RoundObservation
from airllm.policies.reward import RewardConfig, reward_of
from airllm.protocol import DeviceReport
from cloud.planning.ledger import AdapterLedger
from cloud.planning.observation import Observer
from cloud.planning.plan import LinkReport, Outcome, Plan
from cloud.training.adapter_source import AdapterSource


class Downlink:
    """Plans what goes down in every round."""

    def __init__(
        self,
        base: BaseModel,
        head: Head | None,
        master: AdapterSource,
        policy: RankPolicy,
        *,
        num_devices: int,
        num_rounds: int,
        r_max: int,
        deadline_s: float,
        is_shared_band: bool,
        payload: PayloadConfig,
        reward: RewardConfig,
        probe_texts: Callable[[int, int, int], Sequence[Examples]],
        importance: Importance | None = None,
        shared_down: Sequence[Tensor] | None = None,
        limit: Callable[[Sequence[int], Ranks], Ranks] = lambda devices, ranks: ranks,
    ) -> None:
        """``probe_texts`` gives the cloud's texts, in parts, for a round, so many devices, and so
        many different adapters that they hold; ``importance`` overrides the policy's, ``limit`` its
        ranks [devices, projections]; ``shared_down`` are frozen factors that all have, so that they
        need not be sent."""
        if policy.importance not in get_args(Importance):
            raise ValueError(
                f"policy {policy.name} has the importance {policy.importance!r}; it must be one of "
                f"{', '.join(get_args(Importance))}"
            )
        self.base, self.head, self.master, self.policy = base, head, master, policy
        self.num_devices, self.num_rounds, self.r_max = num_devices, num_rounds, r_max
        self.deadline_s, self.is_shared_band = deadline_s, is_shared_band
        self.payload, self.reward = payload, reward
        self._probe_texts = probe_texts
        self._importance = importance or policy.importance
        self._shared_down, self._limit = shared_down, limit
        self._observer = Observer(
            num_rounds, deadline_s, is_shared_band,
            bits_per_rank(
                base.specs, payload.number_format, is_half=shared_down is not None
            ),
            r_max, is_absolute=payload.coding == "absolute",
        )  # fmt: skip
        self.ledger = AdapterLedger(
            base.specs, num_devices, adapter_rank=payload.adapter_rank, shared_down=shared_down
        )
        self._ranks = np.zeros((num_devices, len(base.specs)), dtype=np.int64)
        self._devices: list[int] = []
        self._reports: dict[int, DeviceReport] = {}
        self._plan: Plan | None = None
        self._awaited: NDArray[np.float64] | None = None
        self._first_loss = np.full(num_devices, np.nan)

    def welcome(self, reports: Mapping[int, DeviceReport]) -> None:
        """Take note of the devices: their first losses."""
        for d, report in reports.items():
            self._first_loss[d] = report.loss

    def final(self) -> Adapter:
        """The whole of what there was to send after the last round."""
        return self.master.final()

    def plan(
        self,
        round_index: int,
        reports: Mapping[int, DeviceReport],
        links: Mapping[int, LinkReport],
        *,
        number: int | None = None,
    ) -> Plan:
        """Decide the ranks of one round and write its payloads, for the devices reported on.

        ``number`` is theirs, which no earlier payload to these devices may have; None: the round's.
        """
        self._devices = devices = sorted(reports)
        for i, report in reports.items():
            self.ledger.settle(i, report.update_number)
        self._reports |= reports
        master = self.master.before(round_index)
        found = residuals_of(
            self.base,
            self.head,
            master,
            [self.ledger.adapter(d) for d in devices],
            importance=self._importance,
            is_residual=self.payload.coding == "residual",
            r_max=self.r_max,
            texts=partial(self._probe_texts, round_index, len(devices)),
        )
        observation = self._observe(round_index, [links[d] for d in devices], found)
        if self._awaited is not None:
            rewards, self._awaited = self._awaited, None
            self.policy.learn(RoundFeedback(rewards, False, observation))
        ranks = self._limit(devices, decide(self.policy, observation))
        sent_master, residuals = self.master.after(round_index, ranks), found.adapters
        if sent_master is not master:
            residuals = [sent_master] * len(devices)
        self._ranks = np.zeros_like(self._ranks)
        payloads = [b""] * self.num_devices
        for d, residual, of_device in zip(devices, residuals, ranks, strict=True):
            # A rank beyond what a residual has (a rank-deficient update) sends what there is.
            update, fresh = residual.truncate(of_device), self.ledger.is_fresh(d)
            self._ranks[d] = update.ranks
            if not update.ranks.any() and not fresh:
                continue  # rank 0 everywhere: the device keeps what it has
            payloads[d] = encode(
                update,
                number=round_index + 1 if number is None else number,
                number_format=self.payload.number_format,
                coding="absolute" if fresh else self.payload.coding,
                is_half=self._shared_down is not None,
            )
            self.ledger.note_sent(d, payloads[d])
        self._plan = Plan(self._ranks, tuple(payloads))
        return self._plan

    def conclude(self, round_index: int, outcomes: Sequence[Outcome]) -> NDArray[np.float64]:
        """Book what reached whom; the rewards [devices] of the round."""
        if self._plan is None:
            raise RuntimeError("conclude() needs a plan() of the same round before it")
        rewards = np.zeros(self.num_devices)
        share_s = self.deadline_s / (len(self._devices) if self.is_shared_band else 1)
        for i in self._devices:
            outcome, after = outcomes[i], self._reports[i]
            if outcome.report is not None:
                after = outcome.report
                self.confirm(outcome.report, self._plan.payloads[i])
            rewards[i] = reward_of(
                self.reward,
                loss_before=self._reports[i].loss,
                loss_after=after.loss,
                bits=outcome.payload_bits,
                rate_bps=outcome.rate_bps,
                budget_s=share_s,
            )
        of_planned = rewards[self._devices]
        if round_index + 1 < self.num_rounds:
            # The policy learns once the next observation is there, which bootstrapping needs.
            self._awaited = of_planned
        else:
            self.policy.learn(RoundFeedback(of_planned, True, None))
        return rewards

    def report(self, device: int) -> DeviceReport:
        """What a device said of itself before this round's plan."""
        return self._reports[device]

    def state_dict(self) -> dict[str, Any]:
        """All that the next round depends on, between two rounds."""
        return {
            "ledger": self.ledger.state_dict(),
            "ranks": self._ranks,
            "awaited": self._awaited,
            "first_loss": self._first_loss,
            "reports": [report.to_metrics() for report in self._reports.values()],
            "policy": state_of(self.policy),
            "master": state_of(self.master),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.ledger.load_state_dict(state["ledger"])
        self._ranks, self._awaited = state["ranks"], state["awaited"]
        self._first_loss = state["first_loss"]
        reports = [DeviceReport.from_metrics(metrics) for metrics in state["reports"]]
        self._reports = {report.device: report for report in reports}
        restore(self.policy, state["policy"])
        restore(self.master, state["master"])

    def confirm(self, report: DeviceReport, payload: bytes) -> None:
        """Take note of a payload that a device says it has installed."""
        if report.is_installed:
            self.ledger.confirm(report.device, payload)

    def _observe(
        self,
        round_index: int,
        links: Sequence[LinkReport],
        found: Residuals,
    ) -> RoundObservation:
        reports = [self._reports[d] for d in self._devices]
        is_residual = self.payload.coding == "residual"
        nothing = Adapter.zero(self.base.specs)
        return self._observer.observe(
            round_index,
            links,
            entropy=[r.entropy for r in reports],
            oov_rate=[r.oov_rate for r in reports],
            loss=np.array([r.loss for r in reports]),
            first_loss=self._first_loss[self._devices],
            previous_ranks=self._ranks[self._devices],
            energy=found.energy,
            utility=found.utility,
            trained_ranks=self.master.trained_ranks(round_index),
            updates=found.adapters,
            starts=[self.ledger.adapter(d) if is_residual else nothing for d in self._devices],
        )
