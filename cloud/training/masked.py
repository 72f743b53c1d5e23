"""The published scheme (arXiv 2507.11515): training under the ranks that were decided."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from airllm.lora.adapter import Adapter
from airllm.lora.multi_lora import MultiLora
from airllm.models.base import BaseModel
from airllm.models.batches import Examples
from airllm.models.head import Head
from airllm.models.microbatches import whole
from airllm.streams import generator_for
from cloud.training.adalora import orthogonality
from cloud.training.lora import INIT_STREAM, Stepper, TrainingConfig, dropout_generator


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
        self._scale = config.lora_alpha / config.r_max

        def matrix(*shape: int) -> Tensor:
            values = 0.02 * torch.randn(shape, generator=generator)
            return values.to(base.device).requires_grad_()

        self.down = [matrix(config.r_max, s.in_features) for s in base.specs]
        self.up = [matrix(s.out_features, config.r_max) for s in base.specs]
        self.weight = [
            torch.zeros(config.r_max, device=base.device).requires_grad_() for _ in base.specs
        ]
        self._generator = dropout_generator(base, seed)
        self._active = np.full(len(base.specs), config.r_max)
        self._lora = MultiLora(
            base, head, trained=[self.final()],
            dropout=config.dropout, generator=self._generator,
        )  # fmt: skip
        self._stepper = Stepper(
            data, config, self._parameters, self._backward, num_rounds=num_rounds, seed=seed
        )

    @property
    def _parameters(self) -> list[Tensor]:
        return [*self.down, *self.up, *self.weight]

    def _backward(self, examples: Examples) -> Tensor:
        """Of a step's mean loss and of the penalty, by way of P diag(E) in the place of P."""
        index = torch.arange(self.config.r_max, device=self.base.device)
        folded = [
            up * (weight * (index < int(rank)) * self._scale)
            for up, weight, rank in zip(self.up, self.weight, self._active, strict=True)
        ]
        factors = self._lora.factors()
        with torch.no_grad():
            for own, value in zip([*factors.down, *factors.up], [*self.down, *folded], strict=True):
                own.copy_(value)
        loss = self._lora.backward([whole(self.base, examples)])[0]
        gradients = self._lora.gradients()
        penalty = orthogonality([*self.down, *(up.T for up in self.up)], self.config.orthogonality)
        for parameter in self._parameters:
            parameter.grad = None
        torch.autograd.backward(
            [*self.down, *folded, penalty],
            [*gradients.down, *gradients.up, torch.ones_like(penalty)],
        )
        return loss

    def after(self, round_index: int, ranks: NDArray[np.int64]) -> Adapter:
        """Train one round under ``ranks`` [devices, projections]; the master it leaves."""
        self._active = ranks.max(axis=0)
        self._stepper.run_round()
        return self.final()

    def state_dict(self) -> dict[str, Any]:
        """All that training goes on from, as tensors and numbers."""
        return {
            "parameters": self._parameters,
            "stepper": self._stepper.state_dict(),
            "generator": self._generator.get_state(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        for parameter, value in zip(self._parameters, state["parameters"], strict=True):
            parameter.copy_(value)
        self._generator.set_state(state["generator"])
        self._stepper.load_state_dict(state["stepper"])

    def before(self, round_index: int) -> Adapter:
        return self.final()

    def trained_ranks(self, round_index: int) -> None:
        return None

    def final(self) -> Adapter:
        """The master with E and the scaling folded into P, components in training order."""
        return Adapter(
            tuple(d.detach().cpu().clone() for d in self.down),
            tuple(
                (u.detach() * w.detach()).cpu() * self._scale
                for u, w in zip(self.up, self.weight, strict=True)
            ),
        )
