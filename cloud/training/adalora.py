"""AdaLoRA (Zhang et al. 2023, arXiv 2303.10512), by PEFT."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from airllm.lora.adapter import Adapter
from airllm.models.base import BaseModel
from airllm.models.batches import Examples
from airllm.models.head import Head
from airllm.models.losses import mean_loss
from airllm.models.microbatches import whole
from cloud.training.lora import Stepper, TrainingConfig, Trajectory

_STREAM = 9

logger = logging.getLogger(__name__)


def train_adalora(
    base: BaseModel,
    head: Head | None,
    data: Examples,
    config: TrainingConfig,
    *,
    num_rounds: int,
    seed: int,
) -> Trajectory:
    """P diag(E) Q pruned by sensitivity to a rank budget.

    PEFT's allocator runs on its cubic schedule over the middle of the training; the ranks of a
    round are the entries of E that are not zero then.
    """
    from peft import AdaLoraConfig, get_peft_model

    total = num_rounds * config.steps_per_round
    target = max(1, round(config.r_max * config.adalora_budget))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(
            int(np.random.SeedSequence(seed, spawn_key=(_STREAM,)).generate_state(1)[0])
        )
        with warnings.catch_warnings():
            # PEFT 0.21 reads an attribute that transformers 5 has renamed.
            warnings.simplefilter("ignore", FutureWarning)
            model: Any = get_peft_model(
                base.network,
                AdaLoraConfig(
                    init_r=config.r_max,
                    target_r=target,
                    # From a first tenth without pruning to a last third with the budget fixed.
                    tinit=total // 10,
                    tfinal=total // 3,
                    deltaT=max(1, config.steps_per_round // 10),
                    total_step=max(total, 3),
                    # PEFT divides by the number of ranks left; ours is alpha / r_max at full rank.
                    lora_alpha=config.lora_alpha,  # type: ignore[arg-type]
                    lora_dropout=config.dropout,
                    target_modules=[spec.name for spec in base.specs],
                ),
            )
        layers: list[Any] = [base.network.get_submodule(spec.name) for spec in base.specs]
        try:
            parameters = [p for p in model.parameters() if p.requires_grad]
            adapters, ranks, mean_losses = [], [], []

            def backward(examples: Examples) -> Tensor:
                rows = [layer.lora_A["default"] for layer in layers]
                rows += [layer.lora_B["default"].T for layer in layers]
                loss = mean_loss(base, head, whole(base, examples))
                model.zero_grad()
                (loss + orthogonality(rows, config.orthogonality)).backward()
                return loss.detach()

            def allocate(step: int) -> None:
                # Gradients are still there: the allocator reads its sensitivities from them.
                with _any_algorithms():
                    model.base_model.update_and_allocate(step + 1)

            # PEFT's allocator cannot prune nothing.
            after_step = allocate if target < config.r_max else None
            stepper = Stepper(data, config, parameters, backward, num_rounds=num_rounds, seed=seed)
            for round_index in range(num_rounds):
                mean_losses.append(stepper.run_round(after_step=after_step))
                down, up = [], []
                for layer in layers:
                    e = layer.lora_E["default"].detach()[:, 0]
                    kept = e != 0
                    scale = layer.scaling["default"] / (
                        float(layer.ranknum["default"].detach()) + 1e-5
                    )
                    down.append(layer.lora_A["default"].detach()[kept].float().cpu().clone())
                    weighted = layer.lora_B["default"].detach()[:, kept] * (e[kept] * scale)
                    up.append(weighted.float().cpu())
                adapters.append(Adapter(tuple(down), tuple(up)))
                ranks.append(adapters[-1].ranks)
                logger.info("AdaLoRA round %d: loss %.4f", round_index + 1, mean_losses[-1])
        finally:
            base.network = model.unload()
            base.network.requires_grad_(False)
    return Trajectory(tuple(adapters), np.stack(ranks), np.array(mean_losses))


@contextmanager
def _any_algorithms() -> Iterator[None]:
    """The k-th value that the allocator asks for is the same by any; CUDA would refuse it, since
    its index may differ."""
    is_strict = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(is_strict)


def orthogonality(rows: Sequence[Tensor], weight: float) -> Tensor:
    """Mean over matrices [rank, features] of |M M^T - I|_F, weighted (AdaLoRA, eq. 4)."""
    total = rows[0].new_zeros(())
    for m in rows:
        m = m.float()
        total = total + torch.linalg.matrix_norm(m @ m.T - torch.eye(len(m), device=m.device))
    return weight * total / len(rows)
