"""Where a rank policy learns: many scenarios at once, a forward pass a step.

The reward of a device is paired twice: the decrease of its loss on some of its texts, less the
decrease on the same texts that the reference rule (where the policy starts: greedy by utility) has
in the same round behind the same channel.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airllm.lora.adapter import Adapter
from airllm.policies.knapsack import Ranks
from airllm.policies.observation import RoundObservation
from cloud.environment.scenarios import Episode, Job, Scenario, losses_of, measure, reference_rule

_STREAM = 60

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Transition:
    """One step of all cells; arrays are [rows], a row for each device of each cell."""

    reward: Array
    """nats by which the loss fell more than under the reference rule"""
    decrease: Array
    """nats by which it fell"""
    is_terminal: NDArray[np.bool_]
    used: Array
    """[cells] share of the air time that was planned with"""


class RankEnvironment:
    """Cells side by side; a finished episode makes way for another one with as many devices."""

    def __init__(self, scenarios: Sequence[Scenario], *, rows: int, seed: int) -> None:
        """Scenarios are drawn from a fixed pool, so that their references are measured once."""
        if not scenarios:
            raise ValueError("scenarios must not be empty")
        self.seed(seed)
        self._pool = list(scenarios)
        sizes = np.array([len(s.start.devices) for s in self._pool])
        self._of_size = {int(n): np.flatnonzero(sizes == n) for n in np.unique(sizes)}
        if rows < sizes.min():
            raise ValueError(f"rows must be at least {sizes.min()}, one scenario's, got {rows}")
        self._sizes = self._layout(rows)
        self._references = [_Reference(s) for s in self._pool]
        self._current: list[tuple[int, Episode]] = []
        self.num_steps = 0
        """devices' rounds so far"""

    @property
    def scenarios(self) -> list[Scenario]:
        """The pool."""
        return self._pool

    def score(self, decide_all: Callable[[Sequence[RoundObservation]], list[Ranks]]) -> Array:
        """[scenarios] nats by which the loss is below the reference rule's, mean over rounds."""
        found = np.zeros(len(self._pool))
        for chunk in self._chunks():
            references = [self._references[i] for i in chunk]
            _play([r for r in references if not r.decrease])
            playing = {
                int(i): Episode(r.scenario, r.loss, r.first_loss)
                for i, r in zip(chunk, references, strict=True)
            }
            below: dict[int, list[float]] = {i: [] for i in playing}
            reference_loss = {i: self._references[i].loss for i in playing}
            while playing:
                episodes = list(playing.values())
                decisions = decide_all([e.observation for e in episodes])
                for episode, ranks in zip(episodes, decisions, strict=True):
                    episode.send(ranks)
                measure(episodes)
                for i, episode in playing.items():
                    decrease = self._references[i].decrease[episode.round_index]
                    reference_loss[i] = reference_loss[i] - decrease
                    below[i].append(float(np.mean(reference_loss[i] - episode.loss)))
                playing = {i: e for i, e in playing.items() if not e.is_last}
                for episode in playing.values():
                    episode.advance()
            for i, values in below.items():
                found[i] = np.mean(values)
        return found

    def _chunks(self) -> list[NDArray[np.int64]]:
        return np.array_split(np.arange(len(self._pool)), -(-len(self._pool) // 8))

    def prepare(self, on_progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Measure the starts and the reference rule of every scenario, once."""
        done = 0
        for chunk in self._chunks():
            _play([self._references[i] for i in chunk])
            done += len(chunk)
            on_progress(done, len(self._pool))

    def seed(self, seed: int) -> None:
        """Draw episodes from here on as this seed says."""
        self._rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_STREAM,)))

    def reset(self) -> list[RoundObservation]:
        """Begin a fresh episode in every cell; what the policy sees of them."""
        self._current = [self._begin(size) for size in self._sizes]
        return self.observations

    @property
    def observations(self) -> list[RoundObservation]:
        """[cells]"""
        return [episode.observation for _, episode in self._current]

    def step(self, decisions: Sequence[Ranks]) -> Transition:
        """Send by ``decisions`` [cells], measure, and go on to what `observations` then shows."""
        episodes = [episode for _, episode in self._current]
        before = np.concatenate([e.loss for e in episodes])
        used = np.array([e.send(ranks) for e, ranks in zip(episodes, decisions, strict=True)])
        measure(episodes)
        decrease = before - np.concatenate([e.loss for e in episodes])
        reference = np.concatenate(
            [self._references[i].decrease[e.round_index] for i, e in self._current]
        )
        is_terminal = np.concatenate([np.full(len(e.loss), e.is_last) for e in episodes])
        for place, (_, episode) in enumerate(self._current):
            if episode.is_last:
                self._current[place] = self._begin(len(episode.loss))
            else:
                episode.advance()
        self.num_steps += len(decrease)
        return Transition(decrease - reference, decrease, is_terminal, used)

    def state_dict(self) -> dict[str, object]:
        """Where the random numbers are; a resumed environment begins with `reset`."""
        # As text: its integers are of 128 bits, and half a number may be kept for the next draw.
        return {"rng": json.dumps(self._rng.bit_generator.state), "steps": self.num_steps}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Draw on from what `state_dict` gave."""
        self._rng.bit_generator.state = json.loads(str(state["rng"]))
        self.num_steps = int(str(state["steps"]))

    def _layout(self, rows: int) -> list[int]:
        """Sizes of the cells, each size in turn, until no more fits."""
        sizes: list[int] = []
        while rows >= min(self._of_size):
            for size in sorted(self._of_size):
                if size <= rows:
                    sizes.append(size)
                    rows -= size
        return sizes

    def _begin(self, size: int) -> tuple[int, Episode]:
        index = int(self._rng.choice(self._of_size[size]))
        reference = self._references[index]
        if not reference.decrease:
            _play([reference])
        return index, Episode(self._pool[index], reference.loss, reference.first_loss)


class _Reference:
    """What the reference rule does in a scenario."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.loss = self.first_loss = np.zeros(0)
        self.decrease: dict[int, Array] = {}
        """[devices] by round; empty: not played yet"""


def _play(references: Sequence[_Reference]) -> None:
    """Measure starts, and play scenarios side by side by the reference rule."""
    if not references:
        return
    jobs = []
    for reference in references:
        scenario, start = reference.scenario, reference.scenario.start
        nothing = Adapter.zero(start.world.base.specs)
        for adapters in (start.device_adapters, [nothing] * len(start.device_adapters)):
            jobs += [
                Job(start.world, d, (scenario.part,), a)
                for d, a in zip(start.devices, adapters, strict=True)
            ]
    found = iter(np.split(losses_of(jobs), np.cumsum([
        len(r.scenario.start.device_adapters) for r in references for _ in range(2)
    ])[:-1]))  # fmt: skip
    for reference in references:
        reference.loss, reference.first_loss = next(found), next(found)
    playing = [(r, Episode(r.scenario, r.loss, r.first_loss)) for r in references]
    while playing:
        before = [e.loss for _, e in playing]
        for _, episode in playing:
            episode.send(reference_rule(episode.observation))
        measure([e for _, e in playing])
        for (reference, episode), loss in zip(playing, before, strict=True):
            reference.decrease[episode.round_index] = loss - episode.loss
        playing = [(r, e) for r, e in playing if not e.is_last]
        for _, episode in playing:
            episode.advance()
