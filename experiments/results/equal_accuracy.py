"""How many bits one policy takes to where another one gets, at the same accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from experiments.results.folder import Results, condition_keys

Array = NDArray[np.float64]
_COLUMNS = ("accuracy", "bits", "ratio", "low", "high", "seeds")


def bits_ratio_table(
    results: Results,
    reference: str | None = None,
    *,
    rng: np.random.Generator | None = None,
    num_resamples: int = 2000,
) -> pd.DataFrame:
    """Bits that each label takes over those of the reference, to an accuracy that both reach.

    Of each label and condition there is one curve: accuracy, mean over devices and seeds, against
    the bits delivered to a device and from it up to the end of a round, a straight line between
    two. The accuracy is the lower of both curves' last ones, and a curve has reached it where it
    first does. One row a label and condition: that accuracy, the reference's ``bits`` to it, the
    ``ratio`` with its 95 % percentile interval from ``num_resamples`` draws of seeds, and the
    seeds, those that both have. Not a number where the accuracy is no higher than the preloaded
    head's, for which nothing has to be sent; so is an interval where that goes for more than one
    draw in twenty. ``reference`` is the first label unless it is given.
    """
    rng = rng or np.random.default_rng(0)
    trials, keys = results.trials, condition_keys(results.trials)
    labels = list(map(str, pd.unique(trials["label"])))
    reference = labels[0] if reference is None else reference
    if reference not in labels:
        raise ValueError(f"reference {reference!r} is no label; they are {', '.join(labels)}")
    curves = _curves(results, keys)
    rows = []
    for (label, *condition), own in curves.items():
        other = curves.get((reference, *condition))
        if label == reference or other is None:
            continue
        seeds = own.index.intersection(other.index)
        if seeds.empty:
            continue
        mine, theirs = own.loc[seeds].to_numpy(), other.loc[seeds].to_numpy()
        every = np.arange(len(seeds))[None]
        drawn = rng.integers(len(seeds), size=(num_resamples, len(seeds)))
        accuracy, bits, ratio = (found[0] for found in _compared(mine, theirs, every))
        low, high = _interval(_compared(mine, theirs, drawn)[2])
        rows.append((label, *condition, accuracy, bits, ratio, low, high, len(seeds)))
    return pd.DataFrame(rows, columns=["label", *keys, *_COLUMNS])


def _curves(results: Results, keys: Sequence[str]) -> dict[tuple, pd.DataFrame]:
    """By label and condition: [seeds, accuracies before round 1 and after each, bits likewise]."""
    by = ["label", *keys, "seed"]
    rounds, trials = results.rounds, results.trials
    bits = rounds["delivered_bits"] + rounds["uplink_delivered_bits"]
    of_round = rounds.assign(bits=bits).groupby([*by, "round"], sort=False, dropna=False)
    means = of_round[["accuracy", "bits"]].mean().reset_index()
    start = trials[by].assign(round=0, accuracy=trials["head_accuracy"], bits=0.0)
    means = pd.concat([start, means]).sort_values("round", kind="stable")
    means["bits"] = means.groupby(by, dropna=False)["bits"].cumsum()
    # One object for all that is missing: a dictionary finds no other not-a-number again.
    return {
        tuple(np.nan if name != name else name for name in names): group.pivot(
            index="seed", columns="round", values=["accuracy", "bits"]
        ).dropna()
        for names, group in means.groupby(by[:-1], sort=False, dropna=False)
    }


def _compared(own: Array, other: Array, drawn: NDArray[np.int64]) -> tuple[Array, Array, Array]:
    """[draws] of the accuracy, the other's bits to it, and how many times these ``own`` takes.

    ``own`` and ``other`` [seeds, 2 x rounds] as `_curves` has them, ``drawn`` [draws, seeds].
    """
    (accuracy, bits), (other_accuracy, other_bits) = (
        np.split(curve[drawn].mean(axis=1), 2, axis=1) for curve in (own, other)
    )  # [draws, rounds]
    mark = np.minimum(accuracy[:, -1], other_accuracy[:, -1])
    needed, other_needed = (
        _bits_to(mark, accuracy, bits),
        _bits_to(mark, other_accuracy, other_bits),
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        return mark, other_needed, needed / other_needed


def _bits_to(mark: Array, accuracy: Array, bits: Array) -> Array:
    """[draws] bits at which a curve [draws, rounds] first reaches its mark; nan if at once."""
    row, after = np.arange(len(mark)), (accuracy >= mark[:, None]).argmax(axis=1)
    before = np.maximum(after - 1, 0)
    rise = accuracy[row, after] - accuracy[row, before]
    share = (mark - accuracy[row, before]) / np.where(rise > 0, rise, 1.0)
    found = bits[row, before] + share * (bits[row, after] - bits[row, before])
    return np.where(after > 0, found, np.nan)


def _interval(ratios: Array) -> tuple[float, float]:
    known = ratios[~np.isnan(ratios)]
    if len(known) < 0.95 * len(ratios):
        return np.nan, np.nan
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)
