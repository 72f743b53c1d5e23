"""The published scheme (arXiv 2507.11515): training under the ranks that were decided."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from airllm.lora.adapter import Adapter
from airllm.models.base import BaseModel
from airllm.models.batches import Examples
from airllm.models.head import Head
from airllm.streams import generator_for
from cloud.training.adalora import orthogonality
from cloud.training.lora import INIT_STREAM, Stepper, TrainingConfig


class MaskedTrainer:
    """P diag(E) Q, trained under each round's ranks.

    A rank r leaves the *first* r components active, in training as on the air. Devices with
    unequal ranks share one master, so a projection trains under the largest rank among them.
    """

    def __init__(
        self,
        base: BaseModel,
        head: Head | None,
        data: Examples,
        config: TrainingConfig,
        *,
        num_rounds: int,
        seed: int,
    ) -> None:
        generator = generator_for(seed, INIT_STREAM)
        self.base, self.config = base, config

        def matrix(*shape: int) -> Tensor:
            values = 0.02 * torch.randn(1, *shape, generator=generator)
            return values.to(base.device).requires_grad_()

        self.down = [matrix(config.r_max, s.in_features) for s in base.specs]
        self.up = [matrix(s.out_features, config.r_max) for s in base.specs]
        self.weight = [
            torch.zeros(1, config.r_max, device=base.device).requires_grad_() for _ in base.specs
        ]
        self._stepper = Stepper(
            base, head, data, config, [*self.down, *self.up, *self.weight],
            num_rounds=num_rounds, seed=seed,
        )  # fmt: skip

    def after(self, round_index: int, ranks: NDArray[np.int64]) -> Adapter:
        """Train one round under ``ranks`` [devices, projections]; the master it leaves."""
        config, base = self.config, self.base
        scale = config.lora_alpha / config.r_max
        active = ranks.max(axis=0)
        masks = [
            (torch.arange(config.r_max, device=base.device) < int(r)).float()[None] * scale
            for r in active
        ]

        def load() -> None:
            weights = [w * m for w, m in zip(self.weight, masks, strict=True)]
            base.bank.load(self.down, self.up, weights)

        def penalty() -> Tensor:
            rows = [d[0] for d in self.down] + [u[0].T for u in self.up]
            return orthogonality(rows, config.orthogonality)

        base.bank.dropout = config.dropout
        try:
            self._stepper.run_round(before_step=load, penalty=penalty)
        finally:
            base.bank.clear()
        return self.final()

    def state_dict(self) -> dict[str, Any]:
        """All that training goes on from, as tensors and numbers."""
        return {
            "parameters": [*self.down, *self.up, *self.weight],
            "stepper": self._stepper.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        own = [*self.down, *self.up, *self.weight]
        for parameter, value in zip(own, state["parameters"], strict=True):
            parameter.copy_(value)
        self._stepper.load_state_dict(state["stepper"])

    def before(self, round_index: int) -> Adapter:
        return self.final()

    def trained_ranks(self, round_index: int) -> None:
        return None

    def final(self) -> Adapter:
        """The master with E and the scaling folded into P, components in training order."""
        scale = self.config.lora_alpha / self.config.r_max
        return Adapter(
            tuple(d.detach()[0].cpu().clone() for d in self.down),
            tuple(
                (u.detach() * w.detach()[:, None, :])[0].cpu() * scale
                for u, w in zip(self.up, self.weight, strict=True)
            ),
        )
