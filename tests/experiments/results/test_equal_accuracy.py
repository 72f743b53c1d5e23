"""Bits at equal accuracy: curves with a known ratio, and what has none."""

import numpy as np
import pandas as pd
import pytest

from experiments.results.equal_accuracy import bits_ratio_table
from experiments.results.folder import Results

ROUNDS = 6
HEAD = 0.4


def results_of(curves, *, seeds=4, noise=0.0, snrs=(0.0, 10.0)):
    """Two devices; accuracy after round r is ``curves[label](r)``, each round sends 1000 bits down
    and 500 up to one device, none to the other."""
    rng, trials, rounds = np.random.default_rng(0), [], []
    for label, curve in curves.items():
        for snr in snrs:
            for seed in range(seeds):
                key = {
                    "trial": f"{label}{snr}{seed}", "label": label, "policy.name": label,
                    "channel.snr_db": snr, "seed": seed,
                }  # fmt: skip
                shift = noise * rng.normal()
                trials.append(key | {"accuracy": curve(ROUNDS), "head_accuracy": HEAD})
                rounds += [
                    key | {
                        "round": r, "device": d, "accuracy": curve(r) + shift + (d - 0.5) / 50,
                        "delivered_bits": 2000.0 * d, "uplink_delivered_bits": 1000.0 * d,
                    }
                    for r in range(1, ROUNDS + 1) for d in (0, 1)
                ]  # fmt: skip
    return Results(pd.DataFrame(trials), pd.DataFrame(rounds))


def test_a_policy_that_learns_half_as_fast_takes_twice_the_bits():
    results = results_of({"fast": lambda r: HEAD + 0.02 * r, "slow": lambda r: HEAD + 0.01 * r})
    table = bits_ratio_table(results, "fast")
    assert list(table["label"]) == ["slow", "slow"]
    assert list(table["channel.snr_db"]) == [0.0, 10.0]
    # Both reach what the slow one ends at: after 3 rounds of 1,500 bits, and after 6.
    np.testing.assert_allclose(table["accuracy"], HEAD + 0.06)
    np.testing.assert_allclose(table["bits"], 4500.0)
    np.testing.assert_allclose(table[["ratio", "low", "high"]], 2.0)
    assert (table["seeds"] == 4).all()
    # The other way round it is the inverse, at the same accuracy.
    back = bits_ratio_table(results, "slow")
    np.testing.assert_allclose(back["accuracy"], table["accuracy"])
    np.testing.assert_allclose(back["ratio"], 0.5)


def test_a_mark_between_two_rounds_is_on_the_line_between_them():
    results = results_of({"a": lambda r: HEAD + 0.04 * r, "b": lambda r: HEAD + 0.03 + 0.0 * r})
    table = bits_ratio_table(results)  # the first label is the reference
    np.testing.assert_allclose(table["bits"], 0.75 * 1500.0)
    np.testing.assert_allclose(table["ratio"], 1500.0 / (0.75 * 1500.0))


def test_where_the_head_is_as_good_there_is_no_ratio():
    results = results_of({"a": lambda r: HEAD + 0.01 * r, "worse": lambda r: HEAD - 0.01 * r})
    table = bits_ratio_table(results, "a")
    assert table[["ratio", "low", "high"]].isna().all().all()
    assert len(table) == 2


def test_intervals_hold_the_ratio_and_are_the_same_again():
    curves = {"a": lambda r: HEAD + 0.02 * r, "b": lambda r: HEAD + 0.01 * r}
    results = results_of(curves, seeds=8, noise=0.005)
    table, again = (bits_ratio_table(results, "a") for _ in range(2))
    pd.testing.assert_frame_equal(table, again)
    assert (table["low"] < table["ratio"]).all()
    assert (table["ratio"] < table["high"]).all()
    assert (table["high"] - table["low"] > 0.1).all()


def test_only_shared_seeds_count_and_unknown_references_are_named():
    results = results_of({"a": lambda r: HEAD + 0.02 * r, "b": lambda r: HEAD + 0.01 * r})
    few = Results(*(f[~((f["label"] == "b") & (f["seed"] > 1))] for f in results))
    assert (bits_ratio_table(few, "a")["seeds"] == 2).all()
    with pytest.raises(ValueError, match="reference 'c' is no label; they are a, b"):
        bits_ratio_table(results, "c")


def test_runs_without_an_snr_are_a_condition_of_their_own():
    curves = {"a": lambda r: HEAD + 0.02 * r, "b": lambda r: HEAD + 0.01 * r}
    table = bits_ratio_table(results_of(curves, snrs=(0.0, np.nan)), "a")
    np.testing.assert_array_equal(table["channel.snr_db"], [0.0, np.nan])
    np.testing.assert_allclose(table["ratio"], 2.0)


def test_a_sweep_of_seeds_alone_has_one_row():
    results = results_of(
        {"a": lambda r: HEAD + 0.02 * r, "b": lambda r: HEAD + 0.01 * r}, snrs=(0.0,)
    )
    table = bits_ratio_table(results, "a")
    assert list(table.columns[:2]) == ["label", "accuracy"]
    assert table["ratio"].item() == pytest.approx(2.0)
