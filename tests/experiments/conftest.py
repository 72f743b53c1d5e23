"""A world small enough for every test: a tiny random BERT on two words in two orders."""

import pytest

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
    source = tmp_path / "data.csv"
    source.write_text("text,label\n" + "".join(f"{t},{y}\n" for t, y in ROWS))
    path = tmp_path / "tiny.toml"
    path.write_text(TINY.format(source=source))
    return path
