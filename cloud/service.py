"""The cloud's side of a round: what to send to whom, and what came of it. Knows no Flower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from airllm.checkpoint import restore, state_of
from airllm.lora import Adapter, accumulate
from airllm.models import BaseModel
from airllm.observation import RoundObservation
from airllm.payload import PayloadConfig, bits_per_rank, decode, encode, overhead_bits
from airllm.policy import Importance, RankPolicy, RoundFeedback
from airllm.ranks import Ranks
from airllm.report import DeviceReport
from airllm.reward import RewardConfig, reward_of
from airllm.tuning import Batch, Head
from cloud.candidates import Candidates, candidates_of


class Master(Protocol):
    """Where the master adapter of a round comes from."""

    def before(self, round_index: int) -> Adapter:
        """What the policy may look at when it decides: the update that could be sent."""
        ...

    def after(self, round_index: int, ranks: Ranks) -> Adapter:
        """What is sent, once the ranks are decided; training under them happens here."""
        ...

    def trained_ranks(self, round_index: int) -> NDArray[np.int64] | None:
        """[projections] ranks the master trained under."""
        ...

    def final(self) -> Adapter:
        """The whole master after the last round."""
        ...


@dataclass(frozen=True, slots=True)
class LinkReport:
    """The link of one device as it was reported to the cloud."""

    snr_db: float
    bandwidth_hz: float
    planned_rate_bps: float
    """rate the plan may count on, alone on the band, the margin taken off"""


@dataclass(frozen=True, slots=True)
class Plan:
    """What one round sends."""

    ranks: Ranks
    """[devices, projections]"""
    payloads: tuple[bytes, ...]
    """[devices] empty where nothing is sent"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one device's payload."""

    report: DeviceReport | None
    """its answer; None when nothing reached it"""
    payload_bits: int
    rate_bps: float
    """true rate alone on the band"""


class CloudService:
    """Plans every round's updates and keeps the books on what each device holds."""

    def __init__(
        self,
        base: BaseModel,
        head: Head | None,
        master: Master,
        policy: RankPolicy,
        *,
        num_devices: int,
        num_rounds: int,
        r_max: int,
        deadline_s: float,
        is_shared_band: bool,
        payload: PayloadConfig,
        reward: RewardConfig,
        gain_batches: Sequence[Sequence[Batch]],
    ) -> None:
        if policy.importance not in get_args(Importance):
            raise ValueError(
                f"policy {policy.name} has the importance {policy.importance!r}; it must be one of "
                f"{', '.join(get_args(Importance))}"
            )
        self.base, self.head, self.master, self.policy = base, head, master, policy
        self.num_devices, self.num_rounds, self.r_max = num_devices, num_rounds, r_max
        self.deadline_s, self.is_shared_band = deadline_s, is_shared_band
        self.payload, self.reward = payload, reward
        self._gain_batches = gain_batches
        self._bits_per_rank = bits_per_rank(base.specs, payload.number_format)
        self._held = [Adapter.zero(base.specs) for _ in range(num_devices)]
        self._held_number = [0] * num_devices
        self._ranks = np.zeros((num_devices, len(base.specs)), dtype=np.int64)
        self._reports: list[DeviceReport] = []
        self._plan: Plan | None = None
        self._awaited: list[float] | None = None
        self._first_loss: NDArray[np.float64] | None = None

    def plan(
        self, round_index: int, reports: Sequence[DeviceReport], links: Sequence[LinkReport]
    ) -> Plan:
        """Decide the ranks of one round and write its payloads; both inputs are [devices]."""
        for i, report in enumerate(reports):
            if report.update_number != self._held_number[i]:
                # The device is not where the books have it (a restart): start it afresh.
                self._held[i], self._held_number[i] = Adapter.zero(self.base.specs), -1
        self._reports = list(reports)
        master = self.master.before(round_index)
        found = candidates_of(
            self.base,
            self.head,
            master,
            self._held,
            importance=self.policy.importance,
            is_residual=self.payload.coding == "residual",
            r_max=self.r_max,
            batches=self._gain_batches[round_index] if self._gain_batches else (),
        )
        observation = self._observe(round_index, links, found)
        if self._awaited is not None:
            rewards, self._awaited = np.array(self._awaited), None
            self.policy.learn(RoundFeedback(rewards, False, observation))
        ranks = _checked(self.policy.decide(observation), observation, self.policy.name)
        sent_master, candidates = self.master.after(round_index, ranks), found.adapters
        if sent_master is not master:
            candidates = [sent_master] * self.num_devices
        # A rank beyond what a candidate has (a rank-deficient update) sends what there is.
        updates = [c.truncate(r) for c, r in zip(candidates, ranks, strict=True)]
        self._ranks = np.stack([u.ranks for u in updates])
        payloads = []
        for i, update in enumerate(updates):
            fresh = self._held_number[i] < 0
            if not update.ranks.any() and not fresh:
                payloads.append(b"")  # rank 0 everywhere: the device keeps what it has
                continue
            payloads.append(
                encode(
                    update,
                    number=round_index + 1,
                    number_format=self.payload.number_format,
                    coding="absolute" if fresh else self.payload.coding,
                )
            )
        self._plan = Plan(self._ranks, tuple(payloads))
        return self._plan

    def conclude(self, round_index: int, outcomes: Sequence[Outcome]) -> NDArray[np.float64]:
        """Book what reached whom; the rewards [devices] of the round."""
        if self._plan is None:
            raise RuntimeError("conclude() needs a plan() of the same round before it")
        rewards = np.zeros(self.num_devices)
        share_s = self.deadline_s / (self.num_devices if self.is_shared_band else 1)
        for i, outcome in enumerate(outcomes):
            after = self._reports[i]
            if outcome.report is not None:
                after = outcome.report
                if outcome.report.is_installed:
                    self._install(i, self._plan.payloads[i])
            rewards[i] = reward_of(
                self.reward,
                loss_before=self._reports[i].loss,
                loss_after=after.loss,
                bits=outcome.payload_bits,
                rate_bps=outcome.rate_bps,
                budget_s=share_s,
            )
        if round_index + 1 < self.num_rounds:
            # The policy learns once the next observation is there, which bootstrapping needs.
            self._awaited = rewards.tolist()
        else:
            self.policy.learn(RoundFeedback(rewards, True, None))
        return rewards

    def held(self, device: int) -> Adapter:
        """What the cloud knows a device to hold."""
        return self._held[device]

    def state_dict(self) -> dict[str, Any]:
        """All that the next round depends on, between two rounds."""
        first = self._first_loss
        return {
            "held": [[list(adapter.down), list(adapter.up)] for adapter in self._held],
            "held_number": list(self._held_number),
            "ranks": torch.from_numpy(self._ranks),
            "awaited": self._awaited,
            "first_loss": None if first is None else torch.from_numpy(first),
            "policy": state_of(self.policy),
            "master": state_of(self.master),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._held = [Adapter(tuple(down), tuple(up)) for down, up in state["held"]]
        self._held_number = list(state["held_number"])
        self._ranks = state["ranks"].numpy()
        self._awaited = state["awaited"]
        first = state["first_loss"]
        self._first_loss = None if first is None else first.numpy()
        restore(self.policy, state["policy"])
        restore(self.master, state["master"])

    def _install(self, device: int, data: bytes) -> None:
        update = decode(data, self.base.specs)
        if update.coding == "residual":
            held = accumulate(self._held[device], update.adapter, self.payload.hold_rank)
        else:
            held = update.adapter
        self._held[device], self._held_number[device] = held, update.number

    def _observe(
        self,
        round_index: int,
        links: Sequence[LinkReport],
        found: Candidates,
    ) -> RoundObservation:
        reports = self._reports
        if self._first_loss is None:
            self._first_loss = np.array([r.loss for r in reports])
        loss = np.array([r.loss for r in reports])
        stake = np.zeros(self.num_devices)
        if self.payload.coding == "absolute":
            stake = np.maximum(np.nan_to_num(self._first_loss - loss), 0.0)
        return RoundObservation(
            round_index=round_index,
            num_rounds=self.num_rounds,
            snr_db=np.array([link.snr_db for link in links]),
            bandwidth_hz=np.array([link.bandwidth_hz for link in links]),
            planned_rate_bps=np.array([link.planned_rate_bps for link in links]),
            deadline_s=self.deadline_s,
            is_shared_band=self.is_shared_band,
            entropy=np.array([r.entropy for r in reports]),
            oov_rate=np.array([r.oov_rate for r in reports]),
            loss=loss,
            first_loss=self._first_loss,
            stake=stake,
            previous_ranks=self._ranks,
            bits_per_rank=self._bits_per_rank,
            overhead_bits=float(overhead_bits(len(self.base.specs))),
            r_max=self.r_max,
            energy=found.energy,
            worth=found.worth,
            trained_ranks=self.master.trained_ranks(round_index),
            updates=found.adapters,
            starts=self._held
            if self.payload.coding == "residual"
            else [Adapter.zero(self.base.specs)] * self.num_devices,
        )


def _checked(ranks: Ranks, observation: RoundObservation, name: str) -> Ranks:
    """What a policy of anybody's has decided, if it is what a policy may decide."""
    ranks = np.asarray(ranks)
    shape = (observation.num_devices, observation.num_projections)
    if ranks.shape != shape or not np.issubdtype(ranks.dtype, np.integer):
        raise ValueError(
            f"policy {name} must decide whole numbers [devices, projections] of shape {shape}, "
            f"got {ranks.dtype} of shape {ranks.shape}"
        )
    if ranks.size and not (ranks.min() >= 0 and ranks.max() <= observation.r_max):
        raise ValueError(
            f"policy {name} must decide ranks in 0..{observation.r_max} (training.r_max), "
            f"got {ranks.min()}..{ranks.max()}"
        )
    return ranks.astype(np.int64)
