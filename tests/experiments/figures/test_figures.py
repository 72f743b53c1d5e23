"""Figures: drawn for whatever a sweep or a run left, the same bytes for the same numbers."""

import io

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from experiments import figures
from experiments.figures import (
    aggregate,
    delays,
    differences,
    over_time,
    ranks,
    run,
    snr,
    style,
    tradeoff,
)
from experiments.results import folder as results
from experiments.results.folder import (
    RESULT_COLUMNS,
    ROUND_COLUMNS,
    RoundsWriter,
    load,
    write_results,
    write_summary,
)
from experiments.results.pack import pack
from experiments.sweep.view import print_results

PROJECTIONS = [
    f"encoder.layer.{i}.{kind}"
    for i in range(3)
    for kind in ("attention.self.query", "attention.output.dense", "output.dense")
]


def sweep(labels=("airllm", "uniform"), snrs=(-5.0, 5.0, 15.0), seeds=(0,), bits=3e5, codings=()):
    base = dict.fromkeys(RESULT_COLUMNS, 0.5) | {"delivered_bits": bits, "full_accuracy": 0.8}
    base |= dict.fromkeys(RESULT_COLUMNS[-3:], np.nan)  # perplexities, of causal models only
    return pd.DataFrame(
        [
            {"trial": f"{p}{s}{k}{c}", "label": p, "policy.name": p, "channel.snr_db": s, "seed": k}
            | ({"payload.coding": c} if codings else {})
            | base
            | {"accuracy": 0.6 + 0.01 * k + 0.005 * s, "energy_j": 20.0 + s}
            for p in labels
            for s in snrs
            for k in seeds
            for c in codings or ("",)
        ]
    )


def rounds_of(trials, *, num_rounds=3, num_devices=2):
    """Device 1 of "uniform" gets nothing in time."""
    frames = []
    for row in trials.itertuples():
        for r in range(1, num_rounds + 1):
            for d in range(num_devices):
                is_lost = row.label == "uniform" and d == 1
                frames.append(
                    {"trial": row.trial, "label": row.label, "seed": row.seed}
                    | dict.fromkeys(ROUND_COLUMNS, 1.0)
                    | {"round": r, "device": d, "time_s": r - 1.0, "delay_s": 0.2 * (d + 1),
                       "compute_s": 0.0, "uplink_delay_s": 0.0, "accuracy": 0.5 + 0.1 * r,
                       "delivered": float(not is_lost)}
                )  # fmt: skip
    return pd.DataFrame(frames)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a sweep with all its runs leaves."""
    folder = tmp_path_factory.mktemp("sweep")
    trials = sweep(seeds=(0, 1), codings=("absolute", "residual"))
    keys = ["policy.name", "channel.snr_db", "seed", "payload.coding"]
    write_results(folder / "results.csv", trials.to_dict("records"), keys)
    rounds = rounds_of(trials)
    for name, rows in rounds.groupby("trial"):
        (folder / name).mkdir()
        with RoundsWriter(folder / name / "rounds.csv") as writer:
            writer.write(rows.to_dict("records"))
        depth = np.arange(len(PROJECTIONS)) // 3
        np.savez(
            folder / name / "ranks.npz", ranks=np.tile(depth, (3, 2, 1)), projections=PROJECTIONS
        )
    return folder


def test_figures_repeat_to_the_byte(folder):
    paths = figures.plot(folder)
    assert [p.name for p in paths] == ["snr.png", "snr.pdf"]
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in figures.plot(folder)] == before


def test_all_that_is_drawn_fits_two_columns_and_is_legible(folder):
    """Nothing below 6 points; no text beyond the page; no wider than both columns."""
    source = figures.Source(folder)
    for name, (_, draw) in figures.FIGURES.items():
        assert_fits(draw(source), name)


def assert_fits(figure, name):
    figure.draw_without_rendering()
    assert figure.get_figwidth() <= style.PAGE_IN, name
    box = figure.get_tightbbox()  # in inches
    assert box.x0 >= -0.02, name
    assert box.y0 >= -0.02, name
    assert box.x1 <= figure.get_figwidth() + 0.02, name
    assert box.y1 <= figure.get_figheight() + 0.02, name
    for text in figure.findobj(mpl.text.Text):
        assert text.get_fontsize() >= 6.0, (name, text)


def test_a_legend_of_all_phases_and_the_ranks_of_one_label_fit(folder):
    one = figures.Source(folder, ["airllm"])
    assert_fits(ranks.ranks_figure(folder, one.trials), "ranks")
    federated = one.rounds.assign(compute_s=0.1, uplink_delay_s=0.2)
    figure = delays.timeline_figure(federated, one.trials)
    figure.draw_without_rendering()
    assert figure.legends[0].get_window_extent().width < figure.bbox.width


def test_every_axis_says_what_it_is(folder):
    source = figures.Source(folder)
    for name, (_, draw) in figures.FIGURES.items():
        axes = draw(source).axes
        assert axes[0].get_ylabel() or name == "aggregate"
        assert any(a.get_xlabel() for a in axes), name


# matplotlib leaves labels that begin with _ out of legends, and takes two $ for mathematics.
AWKWARD = (
    "_policy",
    "__",
    "_x$a_b$",
    "$a_1$",
    "$\\nonsense{$",
    "100 $",
    r"a\$b",
    "_child0",
    "plain",
)


def awkward(folder):
    """The frames of a sweep's source with labels, and a swept value, that need care."""
    source = figures.Source(folder)
    names = dict(zip(("airllm", "uniform"), AWKWARD, strict=False))
    trials = sweep(seeds=(0, 1), codings=("absolute", "residual"))
    frames = [trials]
    for i, name in enumerate(AWKWARD[2:]):
        own = trials[trials["label"] == "airllm"]
        frames.append(own.assign(label=name, accuracy=0.5 + 0.01 * i))
    trials = pd.concat([frames[0].replace({"label": names}), *frames[1:]], ignore_index=True)
    trials["payload.coding"] = trials["payload.coding"].replace({"residual": "$a_b$"})
    rounds = rounds_of(frames[0]).replace({"label": names})
    extra = [rounds[rounds["label"] == AWKWARD[0]].assign(label=name) for name in AWKWARD[2:]]
    source.trials, source.rounds = trials, pd.concat([rounds, *extra], ignore_index=True)
    return source


@pytest.mark.parametrize("name", sorted(figures.FIGURES))
def test_every_label_is_shown_as_it_is_written(name, folder, tmp_path):
    figure = figures.FIGURES[name][1](awkward(folder))
    style.save(figure, tmp_path, name)
    for text in figure.findobj(mpl.text.Text):
        assert not text.get_parse_math() or "$" not in text.get_text(), text
    if name in ("ranks", "timeline"):  # one row a label, of which four have room
        shown = [a.get_ylabel() if name == "ranks" else a.get_title("left") for a in figure.axes]
        assert [text for text in shown if text in AWKWARD] == list(AWKWARD[:4])
        return
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    # Differences are from the first label, whose name is on the axis.
    expected = AWKWARD[1:] if name == "differences" else AWKWARD
    assert [text for text in legend if text in AWKWARD] == list(expected)
    assert name != "differences" or any(a.get_ylabel().endswith(AWKWARD[0]) for a in figure.axes)
    if name in ("snr", "pareto", "differences", "energy"):
        assert "$a_b$" in [axes.get_title() for axes in figure.axes]
    if name == "aggregate":
        ticks = [text.get_text() for text in figure.axes[0].get_yticklabels()]
        assert ticks == list(AWKWARD)


def test_labels_are_chosen_in_the_order_given(folder):
    trials = figures.Source(folder, ["uniform", "airllm"]).trials
    assert list(pd.unique(trials["label"])) == ["uniform", "airllm"]
    assert set(figures.Source(folder, ["uniform"]).rounds["label"]) == {"uniform"}
    with pytest.raises(ValueError, match="--label 'unifrom' is none of airllm, uniform"):
        _ = figures.Source(folder, ["unifrom"]).trials
    with pytest.raises(ValueError, match="--figure must be one of snr, .*, learning, got 'bar'"):
        figures.plot(folder, ["bar"])
    with pytest.raises(ValueError, match=r"holds no learning_curve.csv"):
        figures.plot(folder, ["learning"])


def panels(trials) -> Figure:
    return snr.snr_figure(trials)


def figure_of():
    figure = Figure()
    return figure, figure.subplots()


def title_of(figure):
    return figure.legends[0].get_title().get_text()


def test_one_line_a_label_and_both_references_named():
    figure = panels(sweep())
    left, right = figure.axes
    named = {line.get_label(): line for line in left.lines[2:]}
    assert list(named) == ["whole update", "preloaded head"]
    assert [line.get_ydata()[0] for line in named.values()] == [80.0, 50.0]
    assert len({line.get_linestyle() for line in named.values()}) == 2
    assert [t.get_text() for t in figure.legends[0].texts] == ["airllm", "uniform", *named]
    assert not left.texts  # a text would lie under bars, or under a legend of one's own
    assert len(right.lines) == 2
    np.testing.assert_allclose(left.lines[0].get_ydata(), [57.5, 62.5, 67.5])
    assert (left.get_xlabel(), left.get_ylabel()) == (
        "mean SNR (dB)", "accuracy after last round (%)",
    )  # fmt: skip
    assert title_of(figure) == "one seed, no intervals"


def causal():
    values = {"perplexity": 130.0, "head_perplexity": 226.0, "full_perplexity": 119.0}
    return sweep().assign(**values)


def test_a_causal_models_figure_is_of_its_perplexity():
    left, right = panels(causal()).axes
    assert left.get_ylabel() == "perplexity after last round"
    assert right.get_ylabel() == panels(sweep()).axes[1].get_ylabel()
    lines = {line.get_label(): line.get_ydata()[0] for line in left.lines[2:]}
    assert lines == {"base model": 226.0, "whole update": 119.0}
    low, high = left.get_ylim()
    assert low < 119.0 < 226.0 < high


@pytest.mark.parametrize(
    ("trials", "said"),
    [
        (sweep(), ["accuracy after the last round, %", "no update (preloaded head): 50.0 %"]),
        (causal(), ["perplexity after the last round", "no update (base model): 226.0\n",
                    "whole update, airllm: 119.0\n"]),
    ],
)  # fmt: skip
def test_the_table_of_a_sweep_is_of_accuracy_or_of_perplexity(trials, said):
    console = Console(file=io.StringIO(), width=100)
    print_results(console, trials)
    text = console.file.getvalue()
    assert all(line in text for line in said)
    assert ("accuracy" in text) != ("perplexity" in text)


def test_several_seeds_have_t_intervals():
    figure = panels(sweep(labels=["uniform"], seeds=(0, 1, 2)))
    (bars,) = figure.axes[0].containers
    low, high = bars[2][0].get_segments()[0][:, 1]
    # Accuracies 57.5, 58.5, 59.5: the half width is t(0.975, 2) / sqrt(3).
    assert (high - low) / 2.0 == pytest.approx(4.30265 / np.sqrt(3.0), rel=1e-5)
    assert "3 seeds" in title_of(figure)


def test_intervals_wider_than_what_there_can_be_do_not_stretch_the_axis():
    trials = sweep(labels=["uniform"], seeds=(0, 1))
    trials["accuracy"] = [0.2, 0.9] * 3
    low, high = panels(trials).axes[0].get_ylim()
    assert low >= 0.0
    assert high <= 104.0


def test_what_else_is_swept_is_not_taken_for_more_seeds():
    _, axes = figure_of()
    trials = sweep(seeds=(0, 1), codings=("absolute", "residual"))
    for draw, whole in (
        (lambda: snr.metric_against_snr(axes, trials, "accuracy"), "snr_figure"),
        (lambda: tradeoff.accuracy_against(axes, trials), "pareto_figure"),
    ):
        message = f"trials differ in payload.coding too; pick one, or use {whole}"
        with pytest.raises(ValueError, match=f"^{message}$"):
            draw()
    snr.metric_against_snr(axes, trials[trials["payload.coding"] == "absolute"], "accuracy")


def test_bits_that_few_seeds_needed_say_how_many_did_and_are_not_below_zero():
    _, axes = figure_of()
    trials = sweep(labels=["uniform"], seeds=(0, 1, 2))
    bits = [np.nan, np.nan, np.nan, 1e5, 9e6, np.nan, 2e6, 2e6, 2e6]
    snr.metric_against_snr(axes, trials.assign(bits_to_95=bits), "bits_to_95")
    assert [text.get_text() for text in axes.texts] == ["2/3"]
    assert axes.get_ylabel() == "Mbit per device to 95 %\n(n/N: seeds that reached it)"
    np.testing.assert_allclose(axes.lines[-1].get_xydata(), [[5, 4.55], [15, 2.0]])
    bars = [bar[:, 1] for bar in axes.containers[0][2][0].get_segments()]
    np.testing.assert_allclose(bars, [[0.0, 4.55 + 12.7062 * 4.45], [2.0, 2.0]], rtol=1e-4)
    _, axes = figure_of()
    snr.metric_against_snr(axes, trials.assign(bits_to_95=1e6), "bits_to_95")
    assert (len(axes.texts), axes.get_ylabel()) == (0, "Mbit per device to 95 %")
    # A reward may well be below zero.
    snr.metric_against_snr(axes, trials.assign(reward=[-0.1, 0.1, 0.2] * 3), "reward")
    assert axes.containers[-1][2][0].get_segments()[0][0, 1] < 0


def test_shares_are_never_above_all():
    _, axes = figure_of()
    trials = sweep(seeds=(0, 1)).assign(delivered_rate=1.0)
    trials.loc[0, "delivered_rate"] = 0.4
    snr.metric_against_snr(axes, trials, "delivered_rate")
    assert axes.get_ylabel() == "updates in time (%)"
    assert axes.get_ylim()[1] <= 103.0


def test_a_column_without_a_name_of_its_own_goes_by_it():
    _, axes = figure_of()
    trials = sweep().assign(own=3.0, payload_bits=7.0)
    for metric, value in (("own", 3.0), ("payload_bits", 7.0)):
        snr.metric_against_snr(axes, trials, metric)
        assert axes.get_ylabel() == metric
        assert axes.lines[-1].get_ydata()[0] == value
    with pytest.raises(ValueError, match="metric 'acuracy' is no column; there are accuracy, "):
        snr.metric_against_snr(axes, trials, "acuracy")


@pytest.mark.parametrize("name", sorted(figures.FIGURES))
def test_of_nothing_nothing_is_drawn(name, folder):
    source = figures.Source(folder)
    source.trials, source.rounds = source.trials.iloc[:0], source.rounds.iloc[:0]
    with pytest.raises(ValueError, match="trials has no rows, so that there is nothing to draw"):
        figures.FIGURES[name][1](source)


def test_a_sweep_that_is_not_complete_is_drawn():
    frame = sweep(seeds=(0, 1))
    assert "1 to 2 seeds" in title_of(panels(frame.iloc[:-1]))
    panels(frame.iloc[:1])


def test_what_else_is_swept_has_panels_with_one_scale_and_one_look_a_label():
    frame = sweep(codings=("absolute", "residual"))
    figure = panels(
        frame[~((frame["label"] == "airllm") & (frame["payload.coding"] == "residual"))]
    )
    accuracy = figure.axes[:2]
    assert [a.get_title() for a in accuracy] == ["absolute", "residual"]
    assert accuracy[0].get_ylim() == accuracy[1].get_ylim()
    # "uniform" is the second label, also where the first is missing.
    assert {line.get_color() for line in accuracy[1].lines[:1]} == {style.COLOURS[1]}


def presets():
    """One with an SNR, two whose geometry says what theirs is."""
    parts = {"iot-shared-1mhz": 5.0, "umi-5g": np.nan, "indoor": np.nan}
    frames = [sweep(snrs=(snr,), codings=(name,)) for name, snr in parts.items()]
    trials = pd.concat(frames, ignore_index=True).rename(
        columns={"payload.coding": "channel.preset"}
    )
    return trials.assign(accuracy=0.6, energy_j=20.0)


def titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.axison]


def ticks(axes):
    return [label.get_text() for label in axes.get_xticklabels()]


@pytest.mark.parametrize("draw", [snr.snr_figure, tradeoff.energy_figure])
def test_presets_without_an_snr_stand_beside_those_with_one(draw):
    figure = draw(presets())
    assert titles(figure)[:3] == ["iot-shared-1mhz", "umi-5g", "indoor"]
    assert [ticks(axes)[0] for axes in figure.axes[:3]] == ["5", *2 * ["SNR of\nthe channel"]]
    for axes in figure.axes[:3]:
        drawn = [line for line in axes.lines if line.get_label() in ("airllm", "uniform")]
        assert [list(np.isfinite(line.get_ydata())) for line in drawn] == [[True], [True]]
        low, high = axes.get_xlim()
        assert all(low < line.get_xdata()[0] < high for line in drawn)


def test_where_no_run_has_an_snr_conditions_are_drawn_side_by_side():
    trials = presets().assign(**{"channel.snr_db": np.nan})
    assert titles(panels(trials))[:3] == ["iot-shared-1mhz", "umi-5g", "indoor"]
    (left, _) = panels(sweep(snrs=(np.nan,)).assign(accuracy=0.6)).axes
    assert (ticks(left), left.get_xlabel()) == (["SNR of\nthe channel"], "")


def test_no_line_leads_from_an_snr_to_none():
    trials = sweep(snrs=(-5.0, 5.0, np.nan)).assign(accuracy=0.6)
    left = panels(trials).axes[0]
    np.testing.assert_array_equal(left.lines[0].get_ydata(), [60.0, 60.0, np.nan, 60.0])
    assert ticks(left) == ["\N{MINUS SIGN}5", "5", "SNR of\nthe channel"]
    (cost,) = tradeoff.pareto_figure(trials).axes
    assert [len(line.get_xdata()) for line in cost.lines if line.get_label() == "airllm"] == [4]


def test_panels_are_of_the_conditions_that_there_are(monkeypatch):
    trials = presets()
    pairs = ["5 dB, iot-shared-1mhz", "SNR of the channel, umi-5g", "SNR of the channel, indoor"]
    for draw in (over_time.time_figure, delays.delay_figure):
        figure = draw(rounds_of(trials), trials)
        assert titles(figure) == pairs
        assert all(len(axes.lines) >= 2 for axes in figure.axes)
    monkeypatch.setattr(ranks, "mean_ranks", lambda *_: (np.arange(9.0), PROJECTIONS))
    found = titles(ranks.ranks_figure(None, trials))[:3]
    assert [title.replace("\n", " ") for title in found] == pairs
    bars = delays.timeline_figure(rounds_of(trials), trials).axes
    assert [axes.get_title(loc="left") for axes in bars] == [
        "airllm, 5 dB, iot-shared-1mhz", "uniform, 5 dB, iot-shared-1mhz",
    ]  # fmt: skip
    # A condition that a part of a sweep lacks has no panel.
    few = sweep(codings=("absolute", "residual"))
    few = few[few["payload.coding"].eq("absolute") | few["channel.snr_db"].eq(5.0)]
    assert titles(over_time.time_figure(rounds_of(few), few))[-2:] == [
        "15 dB, absolute", "5 dB, residual",
    ]  # fmt: skip


def test_a_label_without_an_snr_is_in_every_figure_and_its_legend():
    own = sweep(labels=["geometry"], snrs=(np.nan,)).assign(accuracy=0.6)
    trials = pd.concat([sweep(), own], ignore_index=True)
    rounds = rounds_of(trials)
    for figure in (
        panels(trials), delays.delay_figure(rounds, trials), over_time.time_figure(rounds, trials)
    ):  # fmt: skip
        named = [text.get_text() for text in figure.legends[0].texts]
        assert named[:3] == ["airllm", "uniform", "geometry"]
    bars = delays.timeline_figure(rounds, trials).axes
    assert bars[2].get_title(loc="left") == "geometry, SNR of the channel"
    with pytest.raises(ValueError, match="the labels share no condition to average over"):
        aggregate.aggregate_figure(trials)


def test_the_terminals_table_names_snrs_as_figures_do():
    console = Console(file=io.StringIO(), width=100)
    print_results(console, sweep().assign(**{"channel.snr_db": -5.0}))
    assert "\N{MINUS SIGN}5 dB" in console.file.getvalue()
    print_results(console, presets())
    text = console.file.getvalue()
    assert "SNR of the channel" in text
    assert "nan" not in text


def test_a_figure_has_the_size_that_is_asked_for(folder):
    trials, rounds = load(folder)
    curve = pd.DataFrame({"steps": [0], "reward": [0.0], "held_out": [0.0], "held_out_stderr": 0.1})
    for draw in (
        lambda **size: snr.snr_figure(trials, **size),
        lambda **size: snr.snr_figure(trials[trials["payload.coding"] == "absolute"], **size),
        lambda **size: tradeoff.energy_figure(trials, **size),
        lambda **size: differences.differences_figure(trials, **size),
        lambda **size: tradeoff.pareto_figure(trials, **size),
        lambda **size: over_time.time_figure(rounds, trials, **size),
        lambda **size: over_time.learning_figure({"": curve}, **size),
        lambda **size: delays.delay_figure(rounds, trials, **size),
        lambda **size: delays.timeline_figure(rounds, trials, **size),
        lambda **size: aggregate.aggregate_figure(trials, **size),
        lambda **size: ranks.ranks_figure(folder, trials, **size),
    ):
        width, height = draw(figsize=(5.25, 4.5)).get_size_inches()
        assert width == 5.25
        assert 4.5 <= height < 5.2  # with the rows of a legend beyond two


def test_labels_keep_looks_of_their_own():
    looks = [style.look(i) for i in range(14)]
    assert len({tuple(map(str, look.values())) for look in looks}) == 14
    assert len({(look["color"], look["marker"]) for look in looks}) == 14


def test_the_legend_of_many_labels_stays_on_the_page():
    figure = panels(sweep(labels=[f"greedy:rule{i}" for i in range(9)]))
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1


@pytest.mark.parametrize("bits", [3e6, 1.0, 9.9e8])
def test_bits_have_plain_numbers_on_their_axis(bits):
    right = panels(sweep(bits=bits)).axes[1]
    assert len(right.get_yticks()) >= 2
    assert right.get_yscale() == "log"
    assert right.get_ylabel().startswith("kbit" if bits < 1e5 else "Mbit")


def test_where_nothing_came_through_a_zero_is_drawn():
    frame = sweep()
    frame.loc[frame["channel.snr_db"] == -5.0, "delivered_bits"] = 0.0
    right = panels(frame).axes[1]
    assert right.get_yscale() == "symlog"
    assert right.get_yticks()[0] == 0.0
    assert right.get_ylim()[0] < 0.0
    assert panels(sweep(bits=0.0)).axes[1].get_yscale() == "linear"


def paired(**of):
    """A label better than the other by 4, 5 and 6 points, on seeds that are far apart."""
    trials = sweep(labels=["uniform", "airllm"], seeds=(0, 1, 2), **of)
    gain = trials["seed"].map({0: 0.04, 1: 0.05, 2: 0.06}) * trials["label"].eq("airllm")
    return trials.assign(mean_accuracy=0.3 + 0.1 * trials["seed"] + gain)


def bars_of(axes, label):
    """Of a label: its line, and the ends of the intervals, of which there are no others."""
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return line, [bar[:, 1] for bar in axes.containers[0][2][0].get_segments()]


def test_differences_are_paired():
    figure = differences.differences_figure(paired())
    (axes,) = figure.axes
    line, ends = bars_of(axes, "airllm")
    half = 4.30265 * 1.0 / np.sqrt(3.0)  # t(0.975, 2), of 4, 5 and 6 points
    np.testing.assert_allclose(line.get_ydata(), [5.0] * 3)
    np.testing.assert_allclose(ends, [[5.0 - half, 5.0 + half]] * 3, rtol=1e-5)
    assert axes.get_ylabel() == "mean accuracy over rounds (points)\nless that of uniform"
    assert [t.get_text() for t in figure.legends[0].texts] == ["airllm"]
    assert title_of(figure) == "mean difference, in pairs, over 3 seeds, bars: 95 % t-intervals"
    # The look is that of the figure against SNR, and the other way round signs are turned.
    assert line.get_color() == style.COLOURS[1]
    (axes,) = differences.differences_figure(paired(), "airllm").axes
    np.testing.assert_allclose(bars_of(axes, "uniform")[0].get_ydata(), [-5.0] * 3)
    assert {*axes.lines[-1].get_ydata()} == {0.0}
    _, own = figure_of()
    differences.difference_against_snr(own, paired(), "uniform", "energy_j")
    assert own.get_ylabel() == "energy (J)\nless that of uniform"


def test_differences_are_of_each_condition_by_itself():
    trials = paired(codings=("absolute", "residual"), snrs=(5.0, np.nan))
    assert titles(differences.differences_figure(trials)) == ["absolute", "residual"]
    has_none = trials["payload.coding"].eq("residual") & trials["label"].eq("uniform")
    both, empty = differences.differences_figure(trials[~has_none], "uniform").axes
    np.testing.assert_allclose(bars_of(both, "airllm")[0].get_ydata(), [5.0, np.nan, 5.0])
    assert len(empty.lines) == 1
    _, own = figure_of()
    with pytest.raises(ValueError, match="differ in payload.coding too; .* differences_figure"):
        differences.difference_against_snr(own, trials, "uniform")


def test_differences_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match="two seeds or more in common with 'airllm'; .* several"):
        differences.differences_figure(sweep())
    with pytest.raises(ValueError, match="reference 'unifrom' is no label; they are uniform, air"):
        differences.differences_figure(paired(), "unifrom")
    trials = paired().assign(bits_to_95=[np.nan, *[1.0] * 17])
    with pytest.raises(ValueError, match="bits_to_95 is empty for 1 of 18 runs, .* another metric"):
        differences.differences_figure(trials, metric="bits_to_95")
    apart = paired()
    least, *_, most = sorted(set(apart["channel.snr_db"]))
    apart = apart[apart["channel.snr_db"] == np.where(apart["label"] == "uniform", least, most)]
    with pytest.raises(
        ValueError, match="at one SNR each, and not at the same: there are no pairs"
    ):
        differences.differences_figure(apart)


def test_the_reference_of_a_figure_is_a_label_and_used(folder):
    with pytest.raises(ValueError, match="--reference 'x' is none of airllm, uniform"):
        figures.plot(folder, ["differences"], reference="x")
    with pytest.raises(ValueError, match="--reference 'x' is for --figure differences; add that"):
        figures.plot(folder, ["snr"], reference="x")
    first = [path.read_bytes() for path in figures.plot(folder, ["differences"])]
    other = figures.plot(folder, ["differences"], reference="uniform")
    assert [path.read_bytes() for path in other] != first
    _, draw = figures.FIGURES["differences"]
    (axes, *_) = draw(figures.Source(folder, reference="uniform")).axes
    assert "less that of uniform" in axes.get_ylabel()


def test_the_pareto_front_is_what_nothing_beats():
    cost, gain = np.array([3.0, 1.0, 2.0, 2.0, 4.0]), np.array([5.0, 1.0, 4.0, 3.0, 5.0])
    assert list(tradeoff.pareto_front(cost, gain)) == [1, 2, 0]


def test_curves_over_time_begin_at_the_head_and_end_with_the_last_update():
    trials = sweep(snrs=(5.0,))
    figure = over_time.time_figure(rounds_of(trials), trials)
    lines = [line for line in figure.axes[0].lines if line.get_label() == "airllm"]
    # The slower of two devices has its update 0.4 s into each of three rounds.
    np.testing.assert_allclose(lines[0].get_xdata(), [0.4, 1.4, 2.4])
    np.testing.assert_allclose(lines[0].get_ydata(), [60.0, 70.0, 80.0])
    assert figure.axes[0].lines[0].get_ydata()[0] == 50.0


def test_delays_of_what_was_lost_are_missing_from_the_distribution():
    trials = sweep(snrs=(5.0,))
    (axes,) = delays.delay_figure(rounds_of(trials), trials).axes
    ends = {line.get_label(): line.get_ydata()[-1] for line in axes.lines}
    assert ends == {"airllm": 1.0, "uniform": 0.5}


def test_lines_without_markers_are_told_apart_in_grey():
    trials = sweep(labels=[f"rule {i}" for i in range(4)], snrs=(5.0,))
    (axes,) = delays.delay_figure(rounds_of(trials), trials).axes
    assert len({line.get_linestyle() for line in axes.lines}) == 4
    trials = trials.assign(mean_accuracy=np.arange(4.0))
    (_, shares) = aggregate.aggregate_figure(trials).axes
    assert len({line.get_linestyle() for line in shares.lines}) == 4
    looks = style.lines_of(pd.DataFrame({"label": range(35)}))
    assert len({str(look | {"label": ""}) for look in looks.values()}) == 35


def test_labels_that_have_no_room_are_said_to_be_left_out(monkeypatch):
    monkeypatch.setattr(ranks, "mean_ranks", lambda *_: (np.arange(9.0), PROJECTIONS))
    for num, said in ((4, ""), (6, "4 of 6 labels shown, choose with --label")):
        trials = sweep(labels=[f"rule {i}" for i in range(num)])
        bars = delays.timeline_figure(rounds_of(trials), trials)
        assert title_of(bars).partition("\n")[2] == said
        drawn = ranks.ranks_figure(None, trials)
        assert drawn.get_suptitle().partition("; ")[2] == said


def test_a_timeline_shows_all_phases_that_were_recorded():
    trials = sweep(labels=["uniform"], snrs=(5.0,))
    rounds = rounds_of(trials)
    plain = delays.timeline_figure(rounds, trials)
    assert [t.get_text() for t in plain.legends[0].texts] == ["downlink", "waiting"]
    # A bar of waiting and one of the downlink for each device and round, and a cross for each loss.
    assert len(plain.axes[0].patches) == 2 * 2 * 3
    assert len([line for line in plain.axes[0].lines if line.get_marker() == "x"]) == 3
    both = delays.timeline_figure(rounds.assign(compute_s=0.1, uplink_delay_s=0.2), trials)
    assert len(both.axes[0].patches) == 4 * 2 * 3


def test_ranks_lie_by_depth_and_type(folder):
    figure = ranks.ranks_figure(folder, load(folder).trials)
    image = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(image, [[0, 1, 2]] * 3)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == [
        "query", "attn. out", "ffn out",
    ]  # fmt: skip


def test_a_runs_projections_have_their_names(tmp_path, monkeypatch):
    with RoundsWriter(tmp_path / "rounds.csv") as writer:
        writer.write([dict.fromkeys(ROUND_COLUMNS, 1.0) | {"device": 0}])
    names = [*PROJECTIONS, "classifier"]
    np.savez(tmp_path / "ranks.npz", ranks=np.ones((1, 1, 10), int), projections=names)
    drawn = []
    monkeypatch.setattr(run, "save", lambda figure, *_: drawn.append(figure) or [])
    run.plot_run(tmp_path)
    right = drawn[0].axes[1]
    assert [t.get_text() for t in right.get_yticklabels()] == [
        *(f"{depth} {kind}" for depth in (1, 2, 3) for kind in ("query", "attn. out", "ffn out")),
        "classifier",
    ]  # fmt: skip


def test_a_stopped_run_is_drawn_as_far_as_it_came(tmp_path):
    rows = [
        dict.fromkeys(ROUND_COLUMNS, 0.5) | {"round": r, "device": d, "time_s": r - 1.0}
        for r in (1, 2, 3)
        for d in (0, 1)
    ]
    with RoundsWriter(tmp_path / "rounds.csv") as writer:
        writer.write(rows)
    np.savez(
        tmp_path / "ranks.npz", ranks=np.ones((3, 2, 4), int), projections=np.array(list("abcd"))
    )
    assert [p.name for p in run.plot_run(tmp_path)] == ["run.png", "run.pdf"]
    stopped = (tmp_path / "run.pdf").read_bytes()
    write_summary(
        tmp_path / "summary.json",
        dict.fromkeys(RESULT_COLUMNS, 0.5) | {"policy": "uniform", "snr_db": 5.0, "seed": 0},
    )
    run.plot_run(tmp_path)
    assert (tmp_path / "run.pdf").read_bytes() != stopped
    # A single run has the figures of a sweep as well.
    assert figures.plot(tmp_path, ["timeline"])[0].name == "timeline.png"


def test_learned_policies_are_drawn_side_by_side(tmp_path):
    for name in ("ppo", "ppo-ddim"):
        (tmp_path / name).mkdir()
        pd.DataFrame(
            {"steps": [0, 100, 200], "reward": [0.0, 0.1, 0.2], "held_out": [0.0, np.nan, 0.1],
             "held_out_stderr": [0.01, np.nan, 0.01]}
        ).to_csv(tmp_path / name / "learning_curve.csv")  # fmt: skip
    assert figures.plot(tmp_path / "ppo")[0] == tmp_path / "ppo" / "learning.png"
    assert figures.plot(tmp_path, ["learning"])[0] == tmp_path / "learning.png"
    figure = over_time.learning_figure(
        {n: pd.read_csv(tmp_path / n / "learning_curve.csv") for n in ("ppo", "ppo-ddim")}
    )
    assert [t.get_text() for t in figure.legends[0].texts] == ["ppo", "ppo-ddim"]


def test_a_packed_sweep_gives_the_same_figures(folder, tmp_path, monkeypatch):
    (folder / "sweep.toml").write_text("seed = 0\n")
    reads = []
    read = results.read_results
    monkeypatch.setattr(results, "read_results", lambda path: reads.append(path) or read(path))
    paths = pack(str(folder), str(tmp_path))
    assert len(reads) == 1
    assert [p.name for p in paths] == [
        "results.csv", "sweep.toml", "rounds.parquet", "mean_ranks.npz",
    ]  # fmt: skip
    whole, packed = load(folder), load(tmp_path)
    pd.testing.assert_frame_equal(packed.rounds, whole.rounds)
    trials = whole.trials[whole.trials["label"] == "airllm"]
    for found in (ranks.mean_ranks(folder, trials), ranks.mean_ranks(tmp_path, trials)):
        assert found[1] == PROJECTIONS
        np.testing.assert_allclose(found[0], np.arange(9) // 3)
    assert figures.plot(tmp_path, ["delay"])[0].exists()
    with pytest.raises(ValueError, match="--label chooses among a sweep's runs, not for --figure"):
        figures.plot(folder, ["run"], ["airllm"])
    with pytest.raises(ValueError, match="is the sweep's own folder"):
        pack(folder, folder)
    (folder / "results.csv").rename(folder / "rounds.csv")  # as in a single run's
    with pytest.raises(ValueError, match="holds no results.csv; name the folder of a sweep"):
        pack(folder, tmp_path)


@pytest.mark.parametrize("label", AWKWARD)
def test_a_legend_of_ones_own_shows_every_label(label):
    with style.style():
        _, axes = figure_of()
        snr.metric_against_snr(axes, sweep(labels=[label]), "accuracy")
        (text,) = axes.legend().get_texts()
    assert text.get_text().lstrip("\N{ZERO WIDTH SPACE}") == label
    assert not text.get_parse_math()


def test_curves_of_policies_are_named_by_their_folders():
    curve = pd.DataFrame(
        {"steps": [1, 2], "reward": [0.1, 0.2], "held_out": [0.0, 0.1], "held_out_stderr": 0.01}
    )
    figure = over_time.learning_figure(dict.fromkeys(AWKWARD, curve))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(AWKWARD)
    assert not any(text.get_parse_math() for text in figure.legends[0].get_texts())


@pytest.mark.parametrize("name", ["_own:Policy", "$a_1$", "a$b$c"])
def test_a_run_is_titled_with_its_policy(name, folder, tmp_path):
    run_folder = next(path for path in sorted(folder.iterdir()) if path.is_dir())
    for file in ("rounds.csv", "ranks.npz"):
        (tmp_path / file).write_bytes((run_folder / file).read_bytes())
    write_summary(tmp_path / "summary.json", dict.fromkeys(RESULT_COLUMNS, 0.5) | {"policy": name})
    titles = []
    before = Figure.legend

    def legend(self, *args, **kwargs):
        made = before(self, *args, **kwargs)
        titles.append(made.get_title())
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "legend", legend)
        run.plot_run(tmp_path)
    assert [(title.get_text(), title.get_parse_math()) for title in titles] == [(name, False)]
