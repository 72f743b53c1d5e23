"""Transfers over a channel that changes under them: slots in which everything is constant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import simpy
from numpy.typing import NDArray

from channel.band import ROUNDING

Array = NDArray[np.float64]

# Weight of the newest slot in the average rate of proportional fair scheduling.
_FAIRNESS_WINDOW = 0.05


@dataclass(slots=True)
class SlotResult:
    """Arrays [devices]."""

    sent_bits: Array
    end_s: Array
    """time at which the last bit was through; infinite where it was not"""
    air_s: Array
    """time on the air"""
    hazard: Array
    """accumulated -log of the probability that no block was given up"""


def run_slots(
    env: simpy.Environment,
    bits: Array,
    slots_from: Callable[[float], Iterator[tuple[Array, Array, NDArray[np.bool_]]]],
    *,
    start_s: Array,
    slot_s: float,
    deadline_s: float,
    scheduler: str,
    is_shared: bool,
) -> SlotResult:
    """Send ``bits`` [devices] until all are through or the deadline (absolute) has come.

    ``slots_from`` a time yields rates in bit/s, hazards per bit, and who is there, all [devices],
    of one slot after another; ``start_s`` [devices] is when payloads are ready: slots in which
    there is nothing to send yet are passed over. ``equal``
    gives everyone active an equal part of the time; the other schedulers give a slot to one
    device, and what it leaves of the slot to the next: in turn (round-robin), by the rate
    (best-first), or by the rate over its average (proportional-fair, Tse 2001).
    """
    left = bits.astype(float).copy()
    result = SlotResult(
        np.zeros_like(left), np.where(left > 0, np.inf, env.now), np.zeros_like(left),
        np.zeros_like(left),
    )  # fmt: skip
    average, turn = np.full(len(left), 1e-9), 0
    slots = slots_from(env.now)
    while (left > 0).any() and env.now < deadline_s:
        idle = int((start_s[left > 0].min() - env.now) / slot_s + 1e-9)
        if idle > 0:
            env.run(until=min(env.now + idle * slot_s, deadline_s))
            slots = slots_from(env.now)
            continue
        rates, hazards, is_here = next(slots)
        start, length = float(env.now), min(slot_s, deadline_s - float(env.now))
        able = (left > 0) & is_here & (rates > 0)
        if not is_shared:
            _serve(result, left, able, rates, hazards, start, np.full(len(left), length))
        elif scheduler == "equal":
            # Those on a dead link keep their turns: the base station does not know.
            waiting = (left > 0) & is_here
            _share(result, left, able, int((waiting & ~able).sum()), rates, hazards, start, length)
        else:
            before = result.sent_bits.copy()
            used = 0.0
            while used < length and able.any():
                turn = _pick(scheduler, able, rates, average, turn)
                need = left[turn] / rates[turn]
                span = np.zeros(len(left))
                span[turn] = min(need, length - used)
                one = np.zeros(len(left), dtype=bool)
                one[turn] = True
                _serve(result, left, one, rates, hazards, start + used, span)
                used += span[turn]
                able &= left > 0
                if need > span[turn]:
                    break
            served = (result.sent_bits - before) / length
            average += _FAIRNESS_WINDOW * (served - average)
        env.run(until=start + length)
    # Who fills the deadline is through, whatever the sum over the slots was rounded to.
    filled = (left > 0) & (left <= bits * ROUNDING)
    result.sent_bits[filled], result.end_s[filled] = bits[filled], env.now
    return result


def _pick(scheduler: str, able: NDArray[np.bool_], rates: Array, average: Array, last: int) -> int:
    if scheduler == "round-robin":
        residuals = np.flatnonzero(able)
        later = residuals[residuals > last]
        return int(later[0] if len(later) else residuals[0])
    score = rates if scheduler == "best-first" else rates / np.maximum(average, 1e-9)
    return int(np.argmax(np.where(able, score, -1.0)))


def _serve(
    result: SlotResult,
    left: Array,
    able: NDArray[np.bool_],
    rates: Array,
    hazards: Array,
    start: float,
    span: Array,
) -> None:
    """Let those who are able send alone for their span [devices] of time."""
    index = np.flatnonzero(able)
    need = left[index] / rates[index]
    is_through = need <= span[index]
    sent = np.where(is_through, left[index], rates[index] * span[index])
    result.sent_bits[index] += sent
    result.hazard[index] += sent * hazards[index]
    result.air_s[index] += np.where(is_through, need, span[index])
    done = index[is_through]
    result.end_s[done] = start + need[is_through]
    left[index] -= sent
    left[done] = 0.0


def _share(
    result: SlotResult,
    left: Array,
    able: NDArray[np.bool_],
    num_dead: int,
    rates: Array,
    hazards: Array,
    start: float,
    length: float,
) -> None:
    """Equal parts of the time: in order of need, T_k = T_{k-1} + (N - k + 1)(s_k - s_{k-1})."""
    index = np.flatnonzero(able)
    if not len(index):
        return
    need = left[index] / rates[index]
    total = len(index) + num_dead
    if need.min() * total > length:
        clock = length / total  # nobody gets through in this slot
        ends = np.full(len(index), np.inf)
    else:
        order = np.argsort(need, kind="stable")
        sharers = total - np.arange(len(index))
        times = np.cumsum(sharers * np.diff(need[order], prepend=0.0))
        ends = np.empty(len(index))
        ends[order] = times
        through = int(np.searchsorted(times, length, side="right"))
        clock = need[order[through - 1]] if through else 0.0
        if through < total:
            clock += (length - (times[through - 1] if through else 0.0)) / (total - through)
    is_through = ends <= length
    sent = np.where(is_through, left[index], np.minimum(rates[index] * clock, left[index]))
    result.sent_bits[index] += sent
    result.hazard[index] += sent * hazards[index]
    result.air_s[index] += np.where(is_through, need, clock)
    result.end_s[index[is_through]] = start + ends[is_through]
    left[index] -= sent
    left[index[is_through]] = 0.0
