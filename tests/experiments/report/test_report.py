"""The report: one page that needs no network, says what the tables say, and looks like a page."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from experiments.report.report import write_report
from experiments.results.folder import read_results, write_results

VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Text of the table cells; raises where tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.cells, self.images, self.sources = [], [], 0, []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")
        self.images += tag == "img"
        self.sources += [value for key, value in attrs if key in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open or "th" in self.open:
            self.cells[-1] += data


@pytest.fixture(scope="module")
def report(tmp_path_factory, trials_of):
    """Of a sweep of three labels; one of them and the folder have names that HTML would take."""
    folder = tmp_path_factory.mktemp("<i>sweep&")
    trials = trials_of({"airllm": 0.05, "uniform": 0.0, "<b>&": 0.1}, seeds=8, noise=0.01)
    trials["mean_accuracy"] = trials["accuracy"] - 0.1
    keys = ["policy.name", "channel.snr_db", "seed"]
    write_results(folder / "results.csv", trials.to_dict("records"), keys)
    (folder / "sweep.toml").write_text('seed = 0\n[model]\nname = "<tiny>"\n')
    return write_report(folder, best="<b>&")


def test_perplexity_is_in_the_report_of_a_causal_model(tmp_path, report, trials_of):
    trials = trials_of({"airllm": 0.05, "uniform": 0.0}).assign(perplexity=120.0)
    write_results(tmp_path / "results.csv", trials.to_dict("records"))
    (tmp_path / "sweep.toml").write_text("seed = 0\n")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "perplexity after the last round (per token)" in page
    assert "perplexity" not in report.read_text(encoding="utf-8")


def test_the_page_stands_by_itself(report):
    text = report.read_text(encoding="utf-8")
    page = Page(text)
    # snr, differences, pareto, energy and aggregate; the others need the runs' own folders.
    assert page.images == 5
    assert text.count("Not drawn, ") == 4
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)
    assert not re.search(r"(src|href)=.?(https?:|//)|@import|url\(", text)


def test_labels_and_values_are_text_and_never_markup(report):
    text = report.read_text(encoding="utf-8")
    assert "<b>" not in text
    assert "<i>" not in text
    assert "<h1>&lt;i&gt;sweep&amp;" in text
    assert "&lt;b&gt;&amp;" in text
    assert "&lt;tiny&gt;" in text
    assert "<b>&" in Page(text).cells


def test_tables_say_what_was_found(report):
    text = report.read_text(encoding="utf-8")
    cells = Page(text).cells
    results = read_results(report.parent)
    mean = 100 * results[(results["label"] == "uniform") & (results["channel.snr_db"] == 0)][
        "accuracy"
    ].mean()  # fmt: skip
    assert any(cell.startswith(f"{mean:.1f} [") for cell in cells)
    # Five points over a spread of one: above uniform at both SNRs, below the third at both.
    row = cells.index("uniform", cells.index("significantly above"))
    assert cells[row + 2 : row + 5] == ["2", "0", "2"]
    row = cells.index("<b>&", row)
    assert cells[row + 2 : row + 5] == ["0", "2", "2"]
    assert "Normalised score: 0 is uniform" in text


def test_runs_without_an_snr_are_named_and_labels_that_share_nothing_too(tmp_path, trials_of):
    trials = trials_of({"airllm": 0.05, "uniform": 0.0}, snrs=(0.0, np.nan))
    write_results(tmp_path / "results.csv", trials.to_dict("records"))
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert {"0 dB", "SNR of the channel"} <= set(Page(text).cells)
    assert "nan dB" not in text
    parts = trials_of({"airllm": 0.05}), trials_of({"uniform": 0.0}, snrs=(np.nan,))
    trials = pd.concat(parts, ignore_index=True)
    write_results(tmp_path / "results.csv", trials.to_dict("records"))
    assert "share no condition" in write_report(tmp_path).read_text(encoding="utf-8")


def test_the_same_results_give_the_same_page(report, tmp_path):
    again = write_report(report.parent, tmp_path / "again.html", best="<b>&")
    assert again.read_bytes() == report.read_bytes()


def test_one_seed_is_reported_without_statistics(trials_of, tmp_path):
    trials = trials_of({"airllm": 0.05, "uniform": 0.0}, seeds=1)
    write_results(tmp_path / "results.csv", trials.to_dict("records"))
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "one seed, no intervals" in text
    assert "Compared with" not in text
    with pytest.raises(ValueError, match="holds no results.csv"):
        write_report(tmp_path / "absent")
    trials = trials_of({"airllm": 0.05, "uniform": 0.0}, seeds=2)
    write_results(tmp_path / "results.csv", trials.to_dict("records"))
    with pytest.raises(ValueError, match="--reference 'paper' is none of airllm, uniform"):
        write_report(tmp_path, reference="paper")
    with pytest.raises(ValueError, match="--best 'uniform' is what a score of 0 stands for"):
        write_report(tmp_path, best="uniform")


def test_a_browser_shows_it(report, tmp_path):
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("no Chromium here to look at the page with")
    picture = tmp_path / "page.png"
    subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         f"--user-data-dir={tmp_path / 'profile'}", "--hide-scrollbars", "--window-size=1100,3000",
         f"--screenshot={picture}", report.as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    pixels = (255 * imread(picture)[..., :3]).round().astype(int)
    assert pixels.shape == (3000, 1100, 3)
    # The figures are there in their own colours, below the tables, and nothing reaches the edge.
    blue = np.abs(pixels - (0x00, 0x72, 0xB2)).sum(axis=2) < 12
    rows = np.flatnonzero(blue.any(axis=1))
    assert blue.sum() > 500
    assert rows[0] > 600
    assert (pixels[:, -10:] > 250).all()
