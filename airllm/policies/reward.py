"""What a round was worth to a device."""

from __future__ import annotations

from typing import Literal

import pydantic.dataclasses

from airllm.bounds import STRICT, NonNegative


@pydantic.dataclasses.dataclass(frozen=True, slots=True, config=STRICT)
class RewardConfig:
    """How the reward weighs loss against air time."""

    kind: Literal["paired", "paper"] = "paired"
    """'paired': the loss before the update less the loss after it, on the same examples;
    'paper': minus the loss, with a penalty on plans that do not fit"""
    cost_weight: NonNegative = 0.1
    """lambda, in nats for a device's whole share of the air time"""
    violation_penalty: NonNegative = 10.0
    """of a plan beyond the latency budget ('paper')"""


def paired_reward(
    loss_before: float, loss_after: float, *, cost: float, cost_weight: float
) -> float:
    """(loss before - loss after) - lambda cost, both losses on the same examples.

    ``cost`` is the air time used as a share of the device's budget, 1 at most: a payload that
    misses its deadline has used its share up, and earned nothing.
    """
    return loss_before - loss_after - cost_weight * min(cost, 1.0)


def paper_reward(
    loss: float, *, cost: float, cost_weight: float, violation_penalty: float
) -> float:
    """-loss - lambda cost where the cost is 1 at most, -(penalty + lambda cost) beyond.

    cost = bits / (rate * latency) (arXiv 2507.11515 and the authors' configuration).
    """
    if cost > 1.0:
        return -(violation_penalty + cost_weight * cost)
    return -loss - cost_weight * cost


def reward_of(
    config: RewardConfig,
    *,
    loss_before: float,
    loss_after: float,
    bits: float,
    rate_bps: float,
    budget_s: float,
) -> float:
    """The configured reward of a payload of ``bits`` on a link of ``rate_bps``."""
    available = rate_bps * budget_s
    # A dead link: any payload is beyond it. A large finite cost keeps the sums finite.
    cost = min(bits / available, 1e3) if available > 0 else 1e3
    if config.kind == "paired":
        return paired_reward(loss_before, loss_after, cost=cost, cost_weight=config.cost_weight)
    return paper_reward(
        loss_after,
        cost=cost,
        cost_weight=config.cost_weight,
        violation_penalty=config.violation_penalty,
    )
