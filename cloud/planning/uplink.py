"""What devices train and may send up, and how it is merged (federated mode). Knows no Flower."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airllm.checkpoint import restore, state_of
from airllm.lora.adapter import Adapter, accumulate
from airllm.lora.evaluation import evaluate
from airllm.lora.local_update import LocalJob, LocalTraining, train_local
from airllm.lora.payload import PayloadConfig, bits_per_rank
from airllm.models.base import BaseModel
from airllm.models.batches import Examples
from airllm.models.head import Head
from airllm.policies.base import RankPolicy, RoundFeedback, decide
from airllm.policies.observation import RoundObservation
from airllm.policies.reward import paired_reward
from airllm.protocol import DeviceReport, TrainingOrder, unpack_utility
from cloud.aggregation.aggregate import Aggregator
from cloud.aggregation.merger import Merger
from cloud.aggregation.methods import FederatedConfig
from cloud.clients.inspection import Inspector
from cloud.clients.participation import Participation
from cloud.planning.downlink import Downlink
from cloud.planning.observation import Observer
from cloud.planning.plan import LinkReport, Plan, UplinkRequest, Upload
from cloud.training.adapter_source import GlobalAdapter

logger = logging.getLogger(__name__)

_CLOUD_KEY = 1_000_000  # takes a device's place in the keys of the cloud's own training


@dataclass(frozen=True, slots=True)
class CloudText:
    """The cloud's own text, for training that goes on from the merged adapter."""

    examples_of: Callable[[int], Examples]
    """those of a step"""
    steps: int
    """a round; 0: none"""


class Uplink:
    """Federated mode: what devices train and may send, and how the cloud merges what comes up.

    Beside the `Downlink`, which sends the global adapter, with a policy of its own.
    """

    def __init__(
        self,
        downlink: Downlink,
        policy: RankPolicy,
        master: GlobalAdapter,
        config: FederatedConfig,
        training: LocalTraining,
        participation: Participation,
        *,
        capacity: NDArray[np.int64],
        r_max: int,
        payload: PayloadConfig,
        adapter_rank: int,
        cloud_text: CloudText,
        cost_weight: float,
        probes: Examples,
        aggregator: Aggregator | None = None,
    ) -> None:
        """``capacity`` [devices] is the largest rank of each device, ``r_max`` that of an update on
        its way up, ``adapter_rank`` that of the global adapter; ``probes`` are texts on which a
        learning policy's merges are judged; ``aggregator`` takes the place of the named one."""
        self.downlink, self.policy, self.master = downlink, policy, master
        self.config, self.training, self.participation = config, training, participation
        self.capacity, self.adapter_rank, self.cloud_text = capacity, adapter_rank, cloud_text
        self.r_max = r_max
        self.base: BaseModel = downlink.base
        self.head: Head | None = downlink.head
        self.num_devices, self.num_rounds = downlink.num_devices, downlink.num_rounds
        self.is_shared_band = downlink.is_shared_band
        shared = master.adapter.down if config.shares_a else None
        self.inspector = Inspector(
            self.base.specs, number_format=payload.number_format,
            coding="absolute" if config.is_absolute else "residual",
            max_norm=config.max_norm, shared_down=shared,
        )  # fmt: skip
        self.merger = Merger(
            master, config, self.inspector, adapter_rank=adapter_rank, seed=participation.seed,
            aggregator=aggregator,
        )  # fmt: skip
        bits = bits_per_rank(self.base.specs, payload.number_format, is_half=shared is not None)
        self._observer = Observer(
            self.num_rounds, downlink.deadline_s, self.is_shared_band, bits, r_max,
            is_absolute=False,
        )  # fmt: skip
        self._cost_weight, self._probes = cost_weight, probes
        self._training_ranks: dict[int, NDArray[np.int64]] = {}
        self._granted: dict[int, NDArray[np.int64]] = {}
        self._first_loss: dict[int, float] = {}
        self._previous = np.zeros((self.num_devices, len(self.base.specs)), dtype=np.int64)
        self._asked: list[int] = []
        self._has_decided = False
        self._awaited: NDArray[np.float64] | None = None
        self.merged: Collection[int] = ()
        """devices whose update was merged in the round that was concluded last"""
        self.round_deadline_s = config.deadline_s or None
        """of virtual time, from a round's start until updates are in; None: all are waited for"""
        is_analog = config.aggregator == "aircomp"
        self.superposition_threshold_db = config.air_threshold_db if is_analog else None
        """SNR from which on updates are sent at once, as analog symbols; None: as bits"""

    def welcome(self, reports: Mapping[int, DeviceReport]) -> None:
        """Take note of the devices: their examples and first losses."""
        self.merger.num_examples = {d: max(r.num_examples, 0) for d, r in reports.items()}
        self._first_loss = {d: r.loss for d, r in reports.items()}

    def orders(
        self, round_index: int, plan: Plan, asked: Sequence[int]
    ) -> dict[int, TrainingOrder]:
        """What each of the devices that are asked is to train, given the plan of its download."""
        self._asked, self._granted = sorted(asked), {}
        self._has_decided = False  # where nobody asks to send, there is nothing to decide
        for d in self._asked:
            self._training_ranks[d] = self._ranks_to_train(d, plan)
        return {
            d: TrainingOrder(self._training_ranks[d], self.policy.importance, round_index)
            for d in self._asked
        }

    def grant(
        self,
        round_index: int,
        requests: Mapping[int, UplinkRequest],
        *,
        asked: Sequence[int] | None = None,
    ) -> dict[int, NDArray[np.int64]]:
        """By device, the ranks [projections] of the update that it may send; who may not is left
        out. ``asked`` share the band: those of the last orders, unless given."""
        self._asked = list(asked) if asked is not None else self._asked
        utility = np.zeros((len(self._asked), len(self.base.specs), self.r_max))
        for i, d in enumerate(self._asked):
            if d in requests:
                utility[i] = self._utility_of(d, requests[d])
        observation = self._observe(round_index, requests, utility)
        if self._awaited is not None:
            rewards, self._awaited = self._awaited, None
            self.policy.learn(RoundFeedback(rewards, False, observation))
        ranks = decide(self.policy, observation)
        self._has_decided = True
        for i, d in enumerate(self._asked):
            # Nothing is sent that training did not leave.
            is_absolute = self.config.is_absolute
            limit = self._training_ranks[d] if is_absolute else (utility[i] != 0).sum(axis=1)
            ranks[i] = np.minimum(ranks[i], limit) if d in requests else 0
        sending = ranks.any(axis=1)
        if self.config.needs_equal_ranks and sending.any():
            ranks[sending] = ranks[sending].min(axis=0)
        self._granted = {d: ranks[i] for i, d in enumerate(self._asked) if ranks[i].any()}
        self._previous[self._asked] = ranks
        return dict(self._granted)

    def conclude(self, round_index: int, uploads: Mapping[int, Upload]) -> NDArray[np.float64]:
        """Merge what arrived; the rewards [devices] of the uplink's policy."""
        updates: dict[int, Adapter] = {}
        for d, ranks in self._granted.items():
            data = uploads[d].data if d in uploads else None
            if data is None:
                continue
            update = self.inspector.open(d, data, granted=ranks, number=round_index + 1)
            if update is not None:
                updates[d] = update
        before, self.merged = self.master.adapter, frozenset(updates)
        aggregator = None
        if updates and self.config.aggregator == "aircomp":
            aggregator = self.merger.superposition(
                round_index, [uploads[d].snr_db for d in updates]
            )
        self.merger.merge(list(updates), list(updates.values()), aggregator=aggregator)
        self.refine(round_index)
        return self._rewards(round_index, uploads, before)

    def state_dict(self) -> dict[str, Any]:
        """All that the next round depends on, between two rounds; the global adapter is in the
        downlink's."""
        return {
            "policy": state_of(self.policy),
            "previous": self._previous,
            "training_ranks": dict(self._training_ranks),
            "examples": dict(self.merger.num_examples),
            "first_loss": dict(self._first_loss),
            "awaited": self._awaited,
            "refused": dict(self.inspector.refused),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        restore(self.policy, state["policy"])
        self._previous, self._awaited = state["previous"], state["awaited"]
        self._training_ranks = dict(state["training_ranks"])
        self.merger.num_examples = dict(state["examples"])
        self._first_loss = dict(state["first_loss"])
        self.inspector.refused = Counter(state["refused"])

    def symbols(self, grants: Mapping[int, NDArray[np.int64]]) -> dict[int, int]:
        """Real numbers that granted updates have: what is sent of them as analog symbols."""
        size = np.array(
            [s.out_features if self.config.shares_a else s.params_per_rank for s in self.base.specs]
        )
        return {d: int(ranks @ size) for d, ranks in grants.items()}

    def _ranks_to_train(self, device: int, plan: Plan) -> NDArray[np.int64]:
        """What a device holds of each projection once its download is in, as far as it can."""
        everything = np.full(len(self.base.specs), self.capacity[device])
        if not self.config.is_absolute or not self.master.num_merges:
            return everything
        has_new = bool(plan.payloads[device])
        present = plan.ranks[device] if has_new else self.downlink.ledger.adapter(device).ranks
        if not present.any():  # no download came through yet: it starts where all started
            return everything
        # So does a projection in which nothing has been learned yet.
        is_empty = ~self.master.adapter.energy(self.r_max).any(axis=1)
        return np.where(is_empty, everything, np.minimum(present, everything))

    def _utility_of(self, device: int, request: UplinkRequest) -> NDArray[np.float64]:
        """[projections, r_max]; nothing for a device that sends no proper table."""
        shape = (len(self.base.specs), self.r_max)
        try:
            found = unpack_utility(request.utility, shape[0])
        except ValueError as error:
            self.inspector.refused["request"] += 1
            logger.warning("request of device %d refused: %s", device, error)
            return np.zeros(shape)
        utility = np.zeros(shape)
        width = min(found.shape[1], shape[1])
        utility[:, :width] = found[:, :width]
        return utility

    def _observe(
        self, round_index: int, requests: Mapping[int, UplinkRequest], utility: NDArray[np.float64]
    ) -> RoundObservation:
        silent = LinkReport(-np.inf, 1.0, 0.0)
        links, loss = [], []
        for d in self._asked:
            request = requests.get(d)
            links.append(silent if request is None else self._in_time(request))
            loss.append(self._first_loss[d] if request is None else request.report.loss)
        reports = [self.downlink.report(d) for d in self._asked]
        return self._observer.observe(
            round_index,
            links,
            entropy=[r.entropy for r in reports],
            oov_rate=[r.oov_rate for r in reports],
            loss=np.array(loss),
            first_loss=np.array([self._first_loss[d] for d in self._asked]),
            previous_ranks=self._previous[self._asked],
            energy=np.abs(utility),
            utility=utility,
        )

    def _in_time(self, request: UplinkRequest) -> LinkReport:
        """Who is ready late has less time left: as if its link were slower."""
        if not self.config.deadline_s:
            return request.link
        left_s = self.config.deadline_s - request.ready_s
        share = np.clip(left_s / self.downlink.deadline_s, 0.0, 1.0)
        return replace(request.link, planned_rate_bps=request.link.planned_rate_bps * float(share))

    def refine(self, round_index: int) -> None:
        """Go on from the merged adapter on the cloud's own text, where it is asked to."""
        if not self.cloud_text.steps:
            return
        ranks = np.full(len(self.base.specs), int(self.capacity.max()))
        first = round_index * self.cloud_text.steps
        job = LocalJob(
            self.master.adapter,
            ranks,
            lambda step: self.cloud_text.examples_of(first + step),
            (_CLOUD_KEY, round_index),
        )
        (result,) = train_local(self.base, self.head, [job], self.training)
        if self.config.is_factored:
            self.master.replace(result.after.completed(self.master.adapter))
        else:
            changed = accumulate(self.master.adapter, result.change, self.adapter_rank)
            self.master.replace(changed)

    def _rewards(
        self, round_index: int, uploads: Mapping[int, Upload], before: Adapter
    ) -> NDArray[np.float64]:
        """A policy that learns is paid, for every device alike, by what merging did to the loss on
        the cloud's texts, less the device's own air time."""
        rewards = np.zeros(self.num_devices)
        if not (getattr(self.policy, "is_exploring", False) and self._has_decided):
            return rewards
        losses = [
            evaluate(self.base, self.head, adapter, self._probes).loss
            for adapter in (before, self.master.adapter)
        ]
        share_s = self.downlink.deadline_s / (len(self._asked) if self.is_shared_band else 1)
        for d in self._asked:
            cost = 0.0
            if d in uploads and uploads[d].bits:
                cost = min(uploads[d].bits / max(uploads[d].rate_bps * share_s, 1e-9), 1.0)
            rewards[d] = paired_reward(*losses, cost=cost, cost_weight=self._cost_weight)
        of_asked = rewards[self._asked]
        if round_index + 1 < self.num_rounds:
            self._awaited = of_asked
        else:
            self.policy.learn(RoundFeedback(of_asked, True, None))
        return rewards
