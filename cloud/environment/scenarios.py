"""What a rank policy learns from: real adapters in the middle of real runs, behind other channels.

A *world* is what one training of the master leaves: base model, head, the master's trajectory and
devices' texts. A *start* is what a group of devices held in some round of a real run, with what
they could be sent and what that is worth, measured once. A *scenario* puts it behind a channel of
its own. With residual coding an *episode* of it is one round long, since the utility of the next
update would have to be measured anew; with absolute coding it goes on until the last round, since
there the utility depends on the round alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from airllm.lora.adapter import Adapter
from airllm.lora.evaluation import evaluate_together
from airllm.lora.payload import PayloadConfig, bits_per_rank, encode
from airllm.lora.payload import decode as decode_payload
from airllm.lora.residuals import Residuals, residuals_of
from airllm.lora.sensitivity import Importance
from airllm.models.base import BaseModel
from airllm.models.batches import Examples, join
from airllm.models.head import Head
from airllm.policies.airllm import NUM_COARSE, decode
from airllm.policies.knapsack import Ranks
from airllm.policies.observation import RoundObservation
from channel.cell import Cell
from channel.config import ChannelConfig
from cloud.planning.observation import Observer
from cloud.planning.plan import LinkReport

Array = NDArray[np.float64]

_TOGETHER = {"cpu": 16, "cuda": 64}  # devices whose adapters share their passes


@dataclass(frozen=True, slots=True)
class DeviceText:
    """One device's labelled text in parts of equal size, each of texts of like length."""

    parts: tuple[Examples, ...]
    entropy: float
    oov_rate: float


@dataclass(frozen=True, slots=True)
class World:
    """One training of the master, and the devices that it is for."""

    base: BaseModel
    head: Head | None
    masters: tuple[Adapter, ...]
    """[rounds]"""
    probe_texts: Callable[[int, int, int], Sequence[Examples]]
    """the cloud's texts, in parts, for a round, so many devices, and so many different adapters"""
    texts: tuple[DeviceText, ...]
    """[devices]"""
    r_max: int

    @property
    def num_rounds(self) -> int:
        return len(self.masters)


@dataclass(frozen=True, slots=True)
class Start:
    """Devices at the beginning of a round; lists and arrays are [devices]."""

    world: World
    payload: PayloadConfig
    round_index: int
    devices: tuple[int, ...]
    """whose texts of the world these are"""
    device_adapters: tuple[Adapter, ...]
    loss: Array
    """with what they hold"""
    first_loss: Array
    """with nothing"""
    residuals: tuple[Residuals, ...]
    """of this round and of those after it that are known"""

    def take(self, places: Sequence[int]) -> Start:
        """Some of the devices."""
        index = list(places)
        return replace(
            self,
            devices=tuple(self.devices[i] for i in index),
            device_adapters=tuple(self.device_adapters[i] for i in index),
            loss=self.loss[index],
            first_loss=self.first_loss[index],
            residuals=tuple(
                Residuals([c.adapters[i] for i in index], c.energy[index], c.utility[index])
                for c in self.residuals
            ),
        )


@dataclass(frozen=True, slots=True)
class Scenario:
    """A start behind a channel, and the part of the devices' texts that it is measured on."""

    start: Start
    channel: ChannelConfig
    seed: int
    part: int


Rule = Callable[[RoundObservation], Ranks]


def reference_rule(observation: RoundObservation) -> Ranks:
    """What the policy decides before it has learned anything."""
    devices, projections = observation.num_devices, observation.num_projections
    return decode(observation, np.zeros((devices, NUM_COARSE)), np.zeros((devices, projections)))


class Episode:
    """One scenario under way."""

    def __init__(self, scenario: Scenario, loss: Array, first_loss: Array) -> None:
        """The losses [devices], now and with nothing sent, are of the texts that count."""
        start = scenario.start
        self.scenario, self.world = scenario, start.world
        self.round_index, self.device_adapters = start.round_index, list(start.device_adapters)
        self.loss, self.first_loss = loss.copy(), first_loss
        self.is_changed = np.zeros(len(self.device_adapters), dtype=bool)
        self._ranks = np.zeros(
            (len(self.device_adapters), len(self.world.base.specs)), dtype=np.int64
        )
        self._cell = Cell(scenario.channel, len(self.device_adapters), seed=scenario.seed)
        channel, payload = scenario.channel, start.payload
        self._observer = Observer(
            self.world.num_rounds, channel.deadline_s, channel.sharing == "shared",
            bits_per_rank(self.world.base.specs, payload.number_format), self.world.r_max,
            is_absolute=payload.coding == "absolute",
        )  # fmt: skip
        self._look()

    @property
    def residuals(self) -> Residuals:
        start = self.scenario.start
        return start.residuals[self.round_index - start.round_index]

    @property
    def is_last(self) -> bool:
        """Nothing is known of the round after this one."""
        start = self.scenario.start
        return self.round_index + 1 == start.round_index + len(start.residuals)

    def send(self, ranks: Ranks) -> float:
        """Send and install; the share of the air time that the plan uses."""
        payload, found = self.scenario.start.payload, self.residuals
        updates = [c.truncate(r) for c, r in zip(found.adapters, ranks, strict=True)]
        self._ranks = np.stack([u.ranks for u in updates])
        data = {
            d: encode(
                u, number=self.round_index + 1, number_format=payload.number_format,
                coding=payload.coding,
            )
            for d, u in enumerate(updates)
            if u.ranks.any()
        }  # fmt: skip
        deliveries = self._cell.transfer({d: 8 * len(b) for d, b in data.items()}) if data else {}
        self.is_changed[:] = False
        for d, delivery in deliveries.items():
            if not delivery.is_delivered or delivery.has_bit_error:
                continue
            update = decode_payload(data[d], self.world.base.specs)
            self.device_adapters[d] = update.onto(self.device_adapters[d], payload.adapter_rank)
            self.is_changed[d] = True
        seen = self.observation
        cost = np.where(self._ranks > 0, seen.unit_cost_s, 0.0) * self._ranks
        return float(cost.sum() / max(seen.budget_s.sum(), 1e-12))

    def advance(self) -> None:
        """Go on to the next round."""
        self.round_index += 1
        self._look()

    def _look(self) -> None:
        self._cell.begin_round(self.round_index)
        links = self._cell.reported_links()
        planned_bps = self._cell.planned_rate_bps(links)
        found = self.residuals
        texts = [self.world.texts[d] for d in self.scenario.start.devices]
        self.observation = self._observer.observe(
            self.round_index,
            [
                LinkReport(link.snr_db, link.bandwidth_hz, float(rate_bps))
                for link, rate_bps in zip(links, planned_bps, strict=True)
            ],
            entropy=[text.entropy for text in texts],
            oov_rate=[text.oov_rate for text in texts],
            loss=self.loss.copy(),
            first_loss=self.first_loss,
            previous_ranks=self._ranks,
            energy=found.energy,
            utility=found.utility,
        )


@dataclass(frozen=True, slots=True)
class Job:
    """The loss to be measured of one device with one adapter."""

    world: World
    device: int
    parts: tuple[int, ...]
    adapter: Adapter


def measure(episodes: Sequence[Episode]) -> None:
    """The losses after an update, of the devices that got one."""
    places = [(e, d) for e in episodes for d in np.flatnonzero(e.is_changed)]
    jobs = [
        Job(e.world, e.scenario.start.devices[d], (e.scenario.part,), e.device_adapters[d])
        for e, d in places
    ]
    for e in episodes:
        e.loss = e.loss.copy()
    for (e, d), loss in zip(places, losses_of(jobs), strict=True):
        e.loss[d] = loss


def losses_of(jobs: Sequence[Job]) -> Array:
    """[jobs] mean losses; adapters of one world are evaluated together."""
    found = np.zeros(len(jobs))
    for world in {id(j.world): j.world for j in jobs}.values():
        places = [i for i, j in enumerate(jobs) if j.world is world]
        size = _TOGETHER[world.base.device.type]
        for first in range(0, len(places), size):
            chunk = places[first : first + size]
            own = [jobs[i] for i in chunk]
            measured = evaluate_together(
                world.base, world.head, [job.adapter for job in own],
                [join([world.texts[job.device].parts[p] for p in job.parts]) for job in own],
            )  # fmt: skip
            found[chunk] = [metrics.loss for metrics in measured]
    return found


def record(
    world: World,
    channel: ChannelConfig,
    behaviour: Rule,
    *,
    payload: PayloadConfig,
    importance: Importance,
    seed: int,
) -> list[Start]:
    """Play a whole run by ``behaviour`` and keep the start of every round, [rounds].

    With absolute coding the residuals of all later rounds are known from the first one on.
    """
    devices, specs = tuple(range(len(world.texts))), world.base.specs
    parts = tuple(range(len(world.texts[0].parts)))
    is_residual = payload.coding == "residual"
    device_adapters: list[Adapter] = [Adapter.zero(specs)] * len(devices)
    first_loss = losses_of([Job(world, d, parts, device_adapters[d]) for d in devices])
    loss = first_loss

    def residuals(round_index: int) -> Residuals:
        return residuals_of(
            world.base, world.head, world.masters[round_index], device_adapters,
            importance=importance,
            is_residual=is_residual, r_max=world.r_max,
            texts=partial(world.probe_texts, round_index, len(device_adapters)),
        )  # fmt: skip

    known = [] if is_residual else [residuals(r) for r in range(world.num_rounds)]
    starts = []
    for round_index in range(world.num_rounds):
        ahead = (residuals(round_index),) if is_residual else tuple(known[round_index:])
        start = Start(
            world, payload, round_index, devices, tuple(device_adapters), loss, first_loss, ahead
        )
        starts.append(start)
        episode = Episode(Scenario(start, channel, seed, 0), loss, first_loss)
        episode.send(behaviour(episode.observation))
        device_adapters = list(episode.device_adapters)
        changed = [d for d in devices if episode.is_changed[d]]
        loss = loss.copy()
        loss[changed] = losses_of([Job(world, d, parts, device_adapters[d]) for d in changed])
    return starts
