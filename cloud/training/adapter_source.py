"""Where the adapter comes from that a round sends: a trajectory, or what devices merged."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from airllm.lora.adapter import Adapter
from airllm.policies.knapsack import Ranks
from cloud.training.lora import Trajectory


class AdapterSource(Protocol):
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


class TrajectorySource:
    """Training does not depend on the air: round r sends from the trajectory's entry r."""

    def __init__(self, trajectory: Trajectory) -> None:
        self._trajectory = trajectory

    def before(self, round_index: int) -> Adapter:
        return self._trajectory.adapters[round_index]

    def after(self, round_index: int, ranks: Ranks) -> Adapter:
        return self._trajectory.adapters[round_index]

    def trained_ranks(self, round_index: int) -> NDArray[np.int64] | None:
        return self._trajectory.ranks[round_index]

    def final(self) -> Adapter:
        return self._trajectory.adapters[-1]


class GlobalAdapter:
    """Federated mode: what was merged of the devices' updates so far."""

    def __init__(self, initial: Adapter) -> None:
        self.adapter, self.num_merges = initial, 0
        self._nothing = initial.truncate([0] * len(initial.up))

    def replace(self, adapter: Adapter) -> None:
        """Take in a merged adapter."""
        self.adapter, self.num_merges = adapter, self.num_merges + 1

    def before(self, round_index: int) -> Adapter:
        # What everybody has from the deployment on is not sent.
        return self.adapter if self.num_merges else self._nothing

    def after(self, round_index: int, ranks: Ranks) -> Adapter:
        return self.before(round_index)

    def trained_ranks(self, round_index: int) -> NDArray[np.int64] | None:
        return None

    def final(self) -> Adapter:
        return self.adapter

    def state_dict(self) -> dict[str, Any]:
        return {"adapter": self.adapter.state_dict(), "num_merges": self.num_merges}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adapter = Adapter.of_state(state["adapter"])
        self.num_merges = int(state["num_merges"])
