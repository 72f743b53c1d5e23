"""Tables of sweeps: who is compared with whom, over which conditions, and what is left out."""

import numpy as np
import pandas as pd
import pytest

from experiments.results import tables
from experiments.results.folder import condition_keys, series_of
from experiments.results.stats import compare_paired, holm


def test_conditions_are_what_differs_within_a_label(trials_of):
    trials = trials_of({"a": 0.0, "b": 0.1}, codings=("absolute", "residual"))
    assert condition_keys(trials) == ["channel.snr_db", "payload.coding"]
    assert set(series_of(trials)) == {"a, absolute", "a, residual", "b, absolute", "b, residual"}
    # A coding that belongs to one label alone is part of what that label stands for.
    own = pd.concat([trials_of({"a": 0.0}), trials_of({"b": 0.0}, codings=("residual",))])
    assert condition_keys(own) == ["channel.snr_db"]
    assert set(series_of(own)) == {"a", "b"}


def test_labels_are_compared_in_pairs_of_seeds_and_corrected_together(trials_of):
    trials = trials_of({"a": 0.05, "b": 0.0, "c": 0.05}, seeds=10)
    table = tables.comparison_table(trials, "accuracy", "a")
    assert list(table["label"]) == ["b", "b", "c", "c"]
    assert list(table["channel.snr_db"]) == [0.0, 10.0, 0.0, 10.0]
    scores = tables.scores_of(trials, "accuracy")
    expected = compare_paired(scores["a"][0.0], scores["b"][0.0])
    assert table["difference"][0] == pytest.approx(expected.difference.value)
    assert table["p"][0] == pytest.approx(expected.p_value)
    np.testing.assert_allclose(table["p_holm"], holm(table["p"]))
    # Seeds spread by five points, which pairing takes away.
    assert (table["p_holm"][:2] < 0.05).all()
    assert (table["p_holm"][2:] > 0.05).all()
    with pytest.raises(ValueError, match="reference 'd' is no label; they are a, b, c"):
        tables.comparison_table(trials, "accuracy", "d")


def test_ratios_are_of_geometric_means(trials_of):
    trials = trials_of({"a": 0.0, "b": 0.0})
    bits = np.where(trials["label"] == "a", 1e5, 3e5)
    trials["total_delivered_bits"] = bits * (1 + trials["seed"])
    table = tables.comparison_table(trials, "total_delivered_bits", "b", is_ratio=True)
    np.testing.assert_allclose(table["ratio"], 3.0)
    assert (table["p"] == 2.0**-5).all()  # six seeds, all of one sign


def test_bits_that_never_sufficed_are_more_than_any_and_in_no_pair(trials_of):
    trials = trials_of({"a": 0.0, "b": 0.0}, seeds=4, snrs=(0.0,))
    trials["bits_to_95"] = [1e5, 2e5, 3e5, np.nan, 2e5, 4e5, np.nan, np.nan]
    found = tables.aggregate_table(trials, "bits_to_95")
    assert found.loc["a", "value"] == 2.5e5
    assert found.loc["b", "value"] == np.inf
    (row,) = tables.comparison_table(trials, "bits_to_95", "b", is_ratio=True).itertuples()
    assert (row.ratio, row.seeds) == (pytest.approx(2.0), 2)
    assert tables.improvement_table(trials, "bits_to_95").loc["a", "b"] > 0.5


def test_a_label_with_fewer_conditions_is_compared_where_it_is(trials_of):
    trials = pd.concat(
        [trials_of({"a": 0.1, "b": 0.0}), trials_of({"dear": 0.2}, seeds=3, snrs=(0.0,))]
    )
    table = tables.comparison_table(trials, "accuracy", "a")
    assert len(table) == 3
    assert table[table["label"] == "dear"]["seeds"].item() == 3
    # Its three seeds of six, the better ones by chance or not, are nobody else's.
    found = tables.aggregate_table(trials, "accuracy")
    assert list(found.index) == ["a", "b"]
    assert found[["seeds", "conditions"]].eq([6, 2]).all(axis=None)
    scores = tables.score_table(trials, "accuracy", uniform="b", best="dear")
    assert scores.loc["b", "score"] == 0.0
    assert scores.loc["dear", "score"] == 1.0
    assert 0.3 < scores.loc["a", "score"] < 0.7
    assert scores["seeds"].eq(3).all()


def test_intervals_are_of_each_label_and_condition(trials_of):
    trials = trials_of({"a": 0.0}, seeds=1)
    assert np.isnan(tables.interval_table(trials, "accuracy")["low"]).all()
    table = tables.interval_table(trials_of({"a": 0.0, "b": 0.0}), "accuracy")
    assert len(table) == 4
    assert (table["low"] < table["value"]).all()
    assert (table["seeds"] == 6).all()


def test_a_sweep_of_seeds_alone_has_one_condition(trials_of):
    trials = trials_of({"a": 0.05, "b": 0.0}, snrs=(5.0,))
    assert len(tables.comparison_table(trials, "accuracy")) == 1
    assert tables.aggregate_table(trials, "accuracy").loc["a", "conditions"] == 1
    with pytest.raises(ValueError, match="metric 'speed' is no column"):
        tables.aggregate_table(trials, "speed")


def test_labels_are_averaged_over_the_same_seeds(trials_of):
    """A label that lacks its worst seed is not the better for it."""
    trials = trials_of({"a": 0.0, "b": 0.0}, seeds=6)
    worst = trials[trials["label"] == "a"].groupby("seed")["accuracy"].mean().idxmin()
    trials = trials[~((trials["label"] == "b") & (trials["seed"] == worst))]
    found = tables.aggregate_table(trials, "accuracy")
    assert found["seeds"].eq(5).all()
    assert found.loc["a", "value"] == pytest.approx(found.loc["b", "value"], abs=0.01)


def test_a_missing_run_takes_one_pair_away_and_not_its_seeds_others(trials_of):
    trials = trials_of({"a": 0.05, "b": 0.0}, seeds=6, snrs=(0.0, 10.0))
    is_gone = trials["label"].eq("b") & trials["seed"].eq(2) & trials["channel.snr_db"].eq(10.0)
    table = tables.comparison_table(trials[~is_gone], "accuracy", "a")
    assert table["seeds"].tolist() == [6, 5]


def test_a_label_that_is_ahead_takes_the_others_with_it(trials_of):
    trials = pd.concat(
        [trials_of({"a": 0.1, "b": 0.0}, seeds=4), trials_of({"far": 0.2}, seeds=10)]
    )
    found = tables.aggregate_table(trials, "accuracy")
    assert list(found.index) == ["a", "b", "far"]
    assert found["seeds"].eq(4).all()
