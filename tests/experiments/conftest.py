"""A world small enough for every test: a tiny random BERT on two words in two orders."""

import numpy as np
import pandas as pd
import pytest

from experiments.results.folder import RESULT_COLUMNS

ROWS = [(f"{a} {b} number {i}", str(int(a == b))) for i in range(30) for a in "ab" for b in "ab"]

TINY = """
seed = 0
rounds = 2
num_devices = 2
examples_per_device = 8

[model]
name = "tiny:bert"
precision = "fp32"
device = "cpu"

[data]
source = "{source}"

[training]
r_max = 4
steps_per_round = 4
batch_size = 8
head_examples = 16
head_steps = 20
gain_examples = 8

[channel]
bandwidth_hz = 3e4

[policy]
name = "uniform"

[policy.ddim]
hidden = 16
sampling_steps = 3
batch_size = 8

[runtime]
threads = 1

[sweep]
"policy.name" = ["uniform", "random"]
"channel.snr_db" = [0, 10]
"""


@pytest.fixture
def tiny_toml(tmp_path):
    """Path of a configuration that a test can run in a second."""
    return write_tiny(tmp_path)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    """The same for all tests of a module: a folder with tiny.toml and its data."""
    return write_tiny(tmp_path_factory.mktemp("tiny")).parent


def write_tiny(folder):
    source = folder / "data.csv"
    source.write_text("text,label\n" + "".join(f"{t},{y}\n" for t, y in ROWS))
    path = folder / "tiny.toml"
    path.write_text(TINY.format(source=source))
    return path


def trials_of(effects, *, seeds=6, snrs=(0.0, 10.0), codings=("absolute",), noise=0.02):
    """Runs whose accuracy is a seed's own level plus the label's effect plus noise."""
    rng = np.random.default_rng(0)
    level = {(k, s): rng.normal(0.7, 0.05) for k in range(seeds) for s in snrs}
    rows = [
        {"trial": f"{label}{snr}{coding}{seed}", "label": label, "policy.name": label,
         "channel.snr_db": snr, "seed": seed, "payload.coding": coding}
        | dict.fromkeys(RESULT_COLUMNS, 0.5)
        | {"perplexity": np.nan}
        | {"accuracy": level[seed, snr] + effect + rng.normal(0, noise)}
        for label, effect in effects.items()
        for snr in snrs for coding in codings for seed in range(seeds)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture(name="trials_of", scope="session")
def _trials_of():
    """Make a sweep's frame of labels with effects of their own."""
    return trials_of
