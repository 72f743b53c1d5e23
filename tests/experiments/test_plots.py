"""Figures: drawn for whatever a sweep or a run left, the same bytes for the same numbers."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from experiments import plots
from experiments.results import (
    RESULT_COLUMNS,
    ROUND_COLUMNS,
    RoundsWriter,
    write_summary,
)


def sweep(policies=("airllm", "uniform"), snrs=(-5.0, 5.0, 15.0), seeds=(0,), bits=1e5):
    base = dict.fromkeys(RESULT_COLUMNS, 0.5) | {"delivered_bits": bits, "full_accuracy": 0.8}
    return pd.DataFrame(
        [
            {"cell": f"{p}{s}{k}", "label": p, "policy.name": p, "channel.snr_db": s, "seed": k}
            | base
            | {"accuracy": 0.6 + 0.01 * k + 0.005 * s}
            for p in policies
            for s in snrs
            for k in seeds
        ]
    )


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draw, and give back the figure as well as its files."""
    figures = []

    def save(figure, out, stem):
        figures.append(figure)
        return keep(figure, out, stem)

    keep = plots._save
    monkeypatch.setattr(plots, "_save", save)

    def draw(frame) -> Figure:
        paths = plots.plot_sweep(frame, tmp_path)
        assert [p.name for p in paths] == ["sweep.png", "sweep.pdf"]
        return figures[-1]

    return draw


def title_of(figure):
    return figure.legends[0].get_title().get_text()


def test_one_line_a_policy_and_both_references_named(drawn):
    figure = drawn(sweep())
    left, right = figure.axes
    assert [t.get_text() for t in left.texts] == ["whole update", "preloaded head"]
    assert len(right.lines) == 2
    np.testing.assert_allclose(left.lines[0].get_ydata(), [57.5, 62.5, 67.5])
    assert (left.get_xlabel(), left.get_ylabel()) == (
        "mean SNR (dB)", "accuracy after last round (%)",
    )  # fmt: skip
    assert title_of(figure) == "one seed"


def test_several_seeds_have_t_intervals(drawn):
    figure = drawn(sweep(policies=["uniform"], seeds=(0, 1, 2)))
    (bars,) = figure.axes[0].containers
    low, high = bars[2][0].get_segments()[0][:, 1]
    # Accuracies 57.5, 58.5, 59.5: the half width is t(0.975, 2) / sqrt(3).
    assert (high - low) / 2.0 == pytest.approx(4.30265 / np.sqrt(3.0), rel=1e-5)
    assert "3 seeds" in title_of(figure)


def test_a_sweep_that_is_not_complete_is_drawn(drawn):
    frame = sweep(seeds=(0, 1))
    assert "1 to 2 seeds" in title_of(drawn(frame.iloc[:-1]))
    drawn(frame.iloc[:1])


def test_policies_keep_looks_of_their_own():
    looks = [plots._look(i) for i in range(14)]
    assert len({tuple(map(str, look.values())) for look in looks}) == 14
    assert len({(look["color"], look["marker"]) for look in looks}) == 14


def test_the_legend_of_many_policies_stays_on_the_page(drawn):
    figure = drawn(sweep(policies=[f"greedy:rule{i}" for i in range(9)]))
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1


@pytest.mark.parametrize("bits", [3e6, 1.0, 9.9e8])
def test_bits_have_plain_numbers_on_their_axis(bits, drawn):
    right = drawn(sweep(bits=bits)).axes[1]
    assert len(right.get_yticks()) >= 2
    assert right.get_yscale() == "log"


def test_where_nothing_came_through_a_zero_is_drawn(drawn):
    frame = sweep()
    frame.loc[frame["channel.snr_db"] == -5.0, "delivered_bits"] = 0.0
    right = drawn(frame).axes[1]
    assert right.get_yscale() == "symlog"
    assert right.get_yticks()[0] == 0.0
    assert right.get_ylim()[0] < 0.0
    assert drawn(sweep(bits=0.0)).axes[1].get_yscale() == "linear"


def test_the_same_numbers_give_the_same_bytes(tmp_path):
    paths = plots.plot_sweep(sweep(), tmp_path)
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in plots.plot_sweep(sweep(), tmp_path)] == before


def test_a_stopped_run_is_drawn_as_far_as_it_came(tmp_path):
    rows = [
        dict.fromkeys(ROUND_COLUMNS, 0.5) | {"round": r, "device": d}
        for r in (1, 2, 3)
        for d in (0, 1)
    ]
    with RoundsWriter(tmp_path / "rounds.csv") as writer:
        writer.write(rows)
    np.savez(
        tmp_path / "ranks.npz", ranks=np.ones((3, 2, 4), int), projections=np.array(list("abcd"))
    )
    assert [p.name for p in plots.plot_run(tmp_path)] == ["run.png", "run.pdf"]
    stopped = (tmp_path / "run.pdf").read_bytes()
    write_summary(
        tmp_path / "summary.json", dict.fromkeys(RESULT_COLUMNS, 0.5) | {"policy": "uniform"}
    )
    plots.plot_run(tmp_path)
    assert (tmp_path / "run.pdf").read_bytes() != stopped
