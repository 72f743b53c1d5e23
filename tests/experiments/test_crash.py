"""A run that is killed and resumed leaves the very bytes that one left in peace does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("crash_driver.py")
# Everything that has a state: a policy that learns, drop-out in training, links with a past.
LEARNING = """
[policy]
name = "{policy}"
is_exploring = true
[policy.ppo]
num_steps = 2
[runtime]
threads = 1
checkpoint_s = 0
"""


# Transfers on their way at every moment.
BUFFERED = """
[policy]
name = "greedy:energy"
[federated]
buffer = 2
dropout = 0.3
[runtime]
threads = 1
checkpoint_s = 0
"""


def drive(tiny_toml, folder, *moments, policy="airllm", rounds=5, is_buffered=False):
    text = tiny_toml.read_text().replace("rounds = 2", f"rounds = {rounds}", 1)
    text = text.replace('[policy]\nname = "uniform"\n', "").replace("[runtime]\nthreads = 1\n", "")
    if is_buffered:
        text = 'mode = "federated"\n' + text + BUFFERED
    else:
        text = text.replace("[channel]\n", '[channel]\nfading = "ar1"\ncsi_error_db = 2.0\n')
        text = text.replace("[training]\n", "[training]\ndropout = 0.1\n")
        text += LEARNING.format(policy=policy)
    tiny_toml.write_text(text)
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(tiny_toml), str(folder), *map(str, moments)],
        capture_output=True, text=True, timeout=3000,
        env={"PYTHONPATH": str(DRIVER.parents[2]), "OMP_NUM_THREADS": "1", "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(results):
    assert results
    for moment, name, left_behind, differing in results:
        assert not differing, f"killed at {moment} ({name}), leaving {left_behind}: {differing}"


def test_a_few_moments(tiny_toml, tmp_path):
    """In the writing of a checkpoint and of rows, and twice in a row."""
    check(drive(tiny_toml, tmp_path / "runs", 49, "52,30", rounds=3))


@pytest.mark.slow
def test_a_few_moments_of_a_master_that_trains_under_the_ranks(tiny_toml, tmp_path):
    check(drive(tiny_toml, tmp_path / "runs", 25, 40, 52, "33,30", policy="paper", rounds=3))


@pytest.mark.slow
def test_every_tenth_moment_of_asynchronous_rounds(tiny_toml, tmp_path):
    text = tiny_toml.read_text()
    (names,) = drive(tiny_toml, tmp_path / "events", is_buffered=True)
    tiny_toml.write_text(text)
    check(drive(tiny_toml, tmp_path / "runs", *range(0, len(names), 10), is_buffered=True))


@pytest.mark.slow
def test_fifty_moments(tiny_toml, tmp_path):
    """Spread over the whole run, and every kind of event among them."""
    text = tiny_toml.read_text()
    (names,) = drive(tiny_toml, tmp_path / "events")
    tiny_toml.write_text(text)
    inside = [i for i, name in enumerate(names) if name.startswith("half of")]
    assert len(inside) >= 10
    spread = [round(i * (len(names) - 1) / 39) for i in range(40)]
    written = [i for i, n in enumerate(names) if "rename" in n or "fsync" in n or "unlink" in n]
    each = [names.index(name) for name in set(names)]
    moments = sorted({*spread, *inside, *each, *written[:: max(1, len(written) // 12)]})
    assert len(moments) >= 50
    assert {names[i] for i in moments} == set(names)
    print(f"{len(moments)} moments of {len(names)}, {len(inside)} in half-written files")
    check(drive(tiny_toml, tmp_path / "runs", *moments))
