"""A world in which a command of the documents runs in a second, and arithmetic in float64."""

import shlex
import sys

import pytest
import torch

from experiments.cli import main as cli

ROWS = [(f"{a} {b} number {i}", int(a == b)) for i in range(30) for a in "ab" for b in "ab"]
SMALL = (
    "model.name=tiny:bert", "model.precision=fp32", "num_devices=2", "examples_per_device=8",
    "rounds=2", "training.steps_per_round=2", "training.r_max=2", "policy.path=",
    "data.label_column=label", "data.text_column=text", "data.source=data.csv",
    "data.eval_source=", "runtime.threads=1",
)  # fmt: skip


@pytest.fixture(scope="session")
def small():
    """Settings that make any configuration's world small."""
    return SMALL


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder for all commands of a document, because some go on from others."""
    folder = tmp_path_factory.mktemp("documents")
    for name in ("data.csv", "reviews.csv"):
        head = "text,label\n" if name == "data.csv" else "review,stars\n"
        (folder / name).write_text(head + "".join(f"{text},{label}\n" for text, label in ROWS))
    for name in ("train.tsv", "dev.tsv"):
        lines = (f"{label}\t{text}\n" for text, label in ROWS)
        (folder / name).write_text("label\tsentence\n" + "".join(lines))
    for name in ("TREC.train.label", "TREC.test.label"):
        (folder / name).write_text("".join(f"L{label}:x {text}\n" for text, label in ROWS))
    return folder


@pytest.fixture
def run_command(folder, monkeypatch):
    """Run a command line ``airllm ...`` in that folder and hold it to success."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def run(command):
        arguments = shlex.split(command)
        if arguments[1] in ("run", "sweep"):
            # Later settings win, so the command is as written but for the size of its world.
            given = "data.source=" in command
            small = [s for s in SMALL if not (given and s.startswith("data."))]
            arguments += [part for setting in small for part in ("--set", setting)]
            if arguments[1] == "sweep" and "--jobs" not in arguments:
                arguments += ["--jobs", "1"]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 0

    return run


@pytest.fixture
def float64():
    """Models and what is trained are in float64, for comparisons of two orders of the same sums.

    AdamW divides by |g| + 1e-8, so that an error e of a gradient g near zero becomes e / 1e-8 of a
    step. In fp32 e is about 1e-8: on another CPU such a step has another sign, and the next
    gradients differ. In float64 e is below 1e-14, and a step the same to 1e-6 of the learning rate.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
