"""Parts of one's own: found by module:object or entry point, made, checked, and run."""

import copy
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from airllm.checkpoint import Stateful, restore, state_of
from airllm.lora.adapter import Adapter
from channel import Cell, ChannelConfig
from experiments.assembly.workbench import make_cell
from experiments.cli import main as cli
from experiments.config.loader import load_config
from experiments.config.plugins import is_own, make_own
from experiments.config.schema import PRESETS, ExperimentConfig
from experiments.results.folder import load, read_ranks, read_rounds
from experiments.runtimes.local import run_simulation
from experiments.sweep.sweep import load_sweep, run_sweep

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"
SIZES = {"num_devices": 2, "num_rounds": 3, "r_max": 4, "depths": [0], "kinds": ["q"], "seed": 0}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty working directory; what is imported from it is forgotten afterwards."""
    folder = tmp_path / "workplace"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


@pytest.fixture
def examples(monkeypatch):
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.setattr(sys, "path", list(sys.path))


def own(tiny_toml, *sets):
    return load_config(ExperimentConfig, tiny_toml, sets, presets=PRESETS)


def test_the_example_of_a_policy_serves_the_best_link_alone(tiny_toml, tmp_path, examples):
    config = own(
        tiny_toml, "policy.name=my_policy:BestLinks(share=0.5)", "channel.csi_error_db=0",
        "channel.csi_quantisation_db=0",
    )  # fmt: skip
    run_simulation(config, tmp_path / "out")
    ranks, _ = read_ranks(tmp_path / "out")
    rounds = read_rounds(tmp_path / "out")
    best = rounds.pivot(index="round", columns="device", values="snr_db").to_numpy().argmax(axis=1)
    assert ranks.sum(axis=2)[np.arange(2), best].all()
    assert not ranks.sum(axis=2)[np.arange(2), 1 - best].any()


def test_a_run_of_a_part_of_ones_own_is_read_where_the_part_is_not(
    tiny_toml, tmp_path, examples, monkeypatch
):
    config = own(tiny_toml, "policy.name=my_policy:BestLinks(share=0.5)")
    run_simulation(config, tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(EXAMPLES)])
    monkeypatch.delitem(sys.modules, "my_policy")
    assert load_config(ExperimentConfig, tmp_path / "out/config.toml", presets=PRESETS) == config


def test_the_example_of_a_policy_is_swept_beside_others(tiny_toml, tmp_path, examples, monkeypatch):
    policies = 'policy.name=["uniform", "my_policy:BestLinks(share=0.5)"]'
    out = tmp_path / "sweep"
    arguments = ["airllm", "sweep", str(tiny_toml), "--sweep", policies, "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    trials = load(out).trials
    assert trials.groupby("label")["channel.snr_db"].agg(list).to_dict() == {
        "uniform": [0.0, 10.0],
        "my_policy:BestLinks(share=0.5)": [0.0, 10.0],
    }


def test_the_example_of_a_channel_model_sends_one_device_after_the_other_into_the_tunnel(
    tiny_toml, tmp_path, examples
):
    config = own(tiny_toml, "channel.model=my_channel:Tunnel(depth_db=30)", "channel.fading=none")
    cell = make_cell(config.channel, 3, seed=0)
    mean = config.channel.snr_db
    for round_index, inside in enumerate(([0], [0, 1], [0, 1, 2], [0, 1, 2], [1, 2], [2], [])):
        cell.begin_round(round_index)
        expected = [mean - 30.0 * (d in inside) for d in range(3)]
        np.testing.assert_allclose(cell.true_links().snr_db, expected)
    run_simulation(config, tmp_path / "out")
    assert read_rounds(tmp_path / "out")["snr_db"].tolist() == [
        mean - 30,
        mean,
        mean - 30,
        mean - 30,
    ]


def test_a_channel_model_that_changes_within_a_round_is_asked_in_every_slot():
    class Falling:
        is_constant = False

        def snr_db(self, time_s, direction):
            return np.array([10.0 if time_s < 0.5 else -100.0])

    config = ChannelConfig.from_preset("iot-shared-1mhz", fading="none", csi_error_db=0.0)
    cell = Cell(config, 1, seed=0, model=Falling())
    cell.begin_round(0)
    rate_bps = 1e6 * np.log2(11.0)
    delivery = cell.transfer({0: 10**8})[0]
    assert delivery.sent_bits == pytest.approx(0.5 * rate_bps, rel=1e-6)


def test_a_channel_model_must_give_a_number_for_each_device():
    class Scalar:
        is_constant = True

        def snr_db(self, time_s, direction):
            return 3.0

    with pytest.raises(ValueError, match="Scalar must give an SNR in dB for each of 2 devices"):
        Cell(ChannelConfig(), 2, seed=0, model=Scalar()).true_links()


def test_a_cell_does_not_pass_over_a_model_that_it_was_not_given():
    with pytest.raises(ValueError, match="channel.model 'a:B' names an object"):
        Cell(ChannelConfig(model="a:B"), 2, seed=0)


def test_the_example_of_a_data_set_is_learned_from(tiny_toml, examples):
    config = own(tiny_toml, "data.source=my_data:commands(count=400)", "data.eval_source=")
    summary = run_simulation(config)
    assert summary["num_train"] == 320
    assert (
        summary["data_fingerprint"]
        != run_simulation(own(tiny_toml, "data.source=my_data:commands(count=400)", "seed=1"))[
            "data_fingerprint"
        ]
    )


def test_a_data_set_may_say_what_the_devices_have(tiny_toml, workplace):
    (workplace / "own_parts.py").write_text(
        "def both():\n"
        "    train = [(f'{w} {i}', w) for i in range(40) for w in ('a', 'b')]\n"
        "    return {'train': train, 'evaluation': train[:20]}\n"
        "def other():\n"
        "    return {'train': [('a', 'b'), ('c', 'd')]}\n"
        "def ragged():\n"
        "    return [('a', 'b', 'c')]\n"
        "def keyed():\n"
        "    return {f'text {i}': 'a' for i in range(90)}\n"
        "def with_label(label):\n"
        "    return [('a', 'b'), ('c', 'd'), ('e', float('nan') if label == 'nan' else label)]\n"
    )
    assert run_simulation(own(tiny_toml, "data.source=own_parts:both"))["num_train"] == 80
    with pytest.raises(ValueError, match="by the keys 'train' and 'evaluation', got train"):
        run_simulation(own(tiny_toml, "data.source=own_parts:other"))
    with pytest.raises(ValueError, match=r"as row 1; it must give pairs \(text, label\)"):
        run_simulation(own(tiny_toml, "data.source=own_parts:ragged"))
    with pytest.raises(ValueError, match=r"got text 0, text 1.{50,70}\.\.\.$"):
        run_simulation(own(tiny_toml, "data.source=own_parts:keyed"))
    for label in (None, "nan", " "):
        with pytest.raises(ValueError, match=r"with_label\(.*gives the label .* in row 3; leave"):
            run_simulation(own(tiny_toml, f"data.source=own_parts:with_label(label={label!r})"))


def test_an_installed_package_offers_its_parts_by_entry_point(tiny_toml, workplace):
    (workplace / "shop.py").write_text(
        "class Nothing:\n"
        "    name, importance = 'nothing', 'energy'\n"
        "    def decide(self, observation):\n"
        "        return 0 * observation.previous_ranks\n"
        "    def learn(self, feedback):\n"
        "        return {}\n"
    )
    info = workplace / "shop-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shop\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[airllm.policies]\nnothing = shop:Nothing\ngone = shop:Gone\n"
    )
    sys.path.append(str(workplace))
    assert run_simulation(own(tiny_toml, "policy.name=nothing"))["payload_bits"] == 0
    with pytest.raises(ValueError, match="policy.name 'gone': shop .* has no 'Gone'; check the"):
        run_simulation(own(tiny_toml, "policy.name=gone"))
    with pytest.raises(ValueError, match="did you mean 'nothing'"):
        own(tiny_toml, "policy.name=nothin")


WRONG = """
from airllm.policies.base import RankPolicy
name = 3
class Lame:
    name, importance = "lame", "gain"
class Curious(Lame):
    def __init__(self, weather): ...
class Wide(Lame):
    def decide(self, observation): return observation.previous_ranks + 99
    def learn(self, feedback): return {}
class Flat(Wide):
    def decide(self, observation): return observation.snr_db
class Vain(Wide):
    importance = "beauty"
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:Policy", "there is no module 'nowhere' in .*workplace or installed; start from"),
        ("wrong.deeper:Policy", "wrong.deeper cannot be imported|no module 'wrong.deeper'"),
        ("wrong:Lam", "has no 'Lam'; did you mean 'Lame'"),
        ("wrong:Wide.decid", "wrong has no 'decid'; did you mean 'decide'"),
        ("wrong:name.real.pat", "wrong has no 'pat'; check the name"),
        ("hasty:Policy", "hasty cannot be imported: AttributeError: .*has no attribute 'soon'"),
        ("wrong:name", "is no class or function, but int"),
        (
            "wrong:Lame",
            r"has no decide\(observation\), no learn\(feedback\); see airllm.policies.base",
        ),
        ("wrong:Lame(x=1)", "takes no 'x'; its arguments are none"),
        ("wrong:Curious", r"asks for 'weather'; give it in brackets, as in wrong:Curious\(weather"),
        ("wrong:Lame(3)", "what is in brackets must be key=value"),
        ("wrong:Wide", r"must decide ranks in 0..4 \(training.r_max\), got 99..99"),
        ("wrong:Flat", r"whole numbers \[devices, projections\] of shape .*, got float64"),
        ("wrong:Vain", "has the importance 'beauty'; it must be one of first, energy"),
        ("broken:Policy", "broken cannot be imported: SyntaxError"),
        ("hungry:Policy", "hungry cannot be imported: No module named 'absent_package'"),
    ],
)
def test_what_does_not_fit_is_said_in_a_sentence(name, message, tiny_toml, workplace):
    (workplace / "wrong.py").write_text(WRONG)
    (workplace / "broken.py").write_text("class Policy\n")
    (workplace / "hasty.py").write_text("import sys\nsys.soon\n")
    (workplace / "hungry.py").write_text("import absent_package\n")
    with pytest.raises(ValueError, match=message):
        run_simulation(own(tiny_toml, f"policy.name={name}"))


def test_a_name_without_a_module_must_be_an_entry_point():
    with pytest.raises(ValueError, match=r"channel.model 'tunnel' is neither module:object nor an"):
        make_own("channel", "tunnel", config=None, num_devices=1, seed=0)


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("policy", "greedy:energy", False),
        ("policy", "fixed:3", False),
        ("policy", "greedi:energy", True),
        ("policy", "my.deep.module:Outer.Inner(a=1, b='x:y')", True),
        ("data", "stanfordnlp/sst2", False),
        ("data", "data.csv", False),
        ("data", "my_data:load", True),
        ("data", "https://example.org/a.csv", False),
    ],
)
def test_what_counts_as_a_name_of_ones_own(kind, name, expected):
    assert is_own(kind, name) is expected


def test_arguments_in_brackets_win_over_what_is_offered(workplace):
    (workplace / "echo.py").write_text(
        "class Echo:\n"
        "    name, importance = 'echo', 'gain'\n"
        "    def __init__(self, seed, r_max, words=()):\n"
        "        self.heard = (seed, r_max, words)\n"
        "    def decide(self, observation): ...\n"
        "    def learn(self, feedback): ...\n"
    )
    echo = make_own("policy", "echo:Echo(seed=7, words=['a', 'b'])", **SIZES)
    assert echo.heard == (7, 4, ["a", "b"])


def test_the_example_of_an_aggregator_clips_who_is_loud(examples):
    rng = torch.Generator().manual_seed(0)
    shape = (torch.randn(2, 5, generator=rng), torch.randn(4, 2, generator=rng))
    quiet = Adapter((shape[0],), (shape[1],))
    loud = Adapter((shape[0],), (-100.0 * shape[1],))
    clipped = make_own("aggregator", "my_aggregator:Clipped(quantile=0)")
    merged = clipped([quiet, loud, quiet], [1.0, 1.0, 1.0], 2)
    torch.testing.assert_close(merged.delta(0), quiet.delta(0) / 3)


def test_the_example_of_an_aggregator_merges_a_federation(tiny_toml, examples, float64):
    sets = ("mode=federated", "channel.bandwidth_hz=1e7", "rounds=3")
    exact = run_simulation(own(tiny_toml, *sets))
    name = "federated.aggregator=my_aggregator:Clipped"
    none_clipped = run_simulation(own(tiny_toml, *sets, f"{name}(quantile=1.0)"))
    clipped = run_simulation(own(tiny_toml, *sets, f"{name}(quantile=0.0)"))
    assert none_clipped["loss"] == pytest.approx(exact["loss"], rel=1e-7)
    assert clipped["loss"] != pytest.approx(exact["loss"], rel=1e-5)
    assert clipped["full_loss"] < clipped["head_loss"]


def test_the_example_of_a_device_computes_at_its_own_pace(tiny_toml, tmp_path, examples):
    run_simulation(
        own(
            tiny_toml, "mode=federated", "channel.bandwidth_hz=1e7",
            'federated.hardware=["my_device:watch", "my_device:watch(throttled=0.5)"]',
        ),
        tmp_path / "out",
    )  # fmt: skip
    compute_s = read_rounds(tmp_path / "out").pivot(
        index="round", columns="device", values="compute_s"
    )
    assert (compute_s > 0).all().all()
    # Lengths of texts differ between devices, their speeds by a factor of two.
    assert (compute_s[1] > 1.2 * compute_s[0]).all()


def test_an_unknown_aggregator_is_named_with_those_there_are(tiny_toml):
    with pytest.raises(ValueError, match="one of exact.*aircomp, <module>:<object>, got 'mean'"):
        own(tiny_toml, "mode=federated", "federated.aggregator=mean")


RAISING = """
import builtins
class Policy:
    name, importance = "own", "energy"
    def __init__(self, how="", error="KeyError"):
        self.how, self.error = how, getattr(builtins, error)
        self.at("init")
    def at(self, how):
        if how == self.how: raise self.error("my bug")
    def decide(self, observation):
        self.at("decide")
        return 0 * observation.previous_ranks
    def learn(self, feedback):
        self.at("learn")
        return {}
    def state_dict(self):
        return {"how": self.how}
    def load_state_dict(self, state):
        self.how = state["how"]
class NoArgument(Policy):
    def decide(self): ...
class Number(Policy):
    learn = 5
class Channel:
    is_constant = True
    def snr_db(self, time_s, direction): raise KeyError("my bug")
class ShortChannel(Channel):
    def snr_db(self, time_s): ...
def pairs():
    yield "a", "b"
    raise KeyError("my bug")
def device():
    from edge.hardware import Hardware
    return Hardware("own", "5", 1.0, 1.0)
def nothing(): ...
class Aggregator:
    def __call__(self, updates, weights, max_rank): return updates
class ShortAggregator:
    def __call__(self, updates): ...
"""
BUG = r"raised KeyError: 'my bug' \(.*own_parts.py:"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("policy.name", "Policy(how='init')", f"Policy {BUG}9"),
        ("policy.name", "Policy(how='decide')", f"decide {BUG}9"),
        ("policy.name", "Policy(how='learn')", f"learn {BUG}9"),
        ("policy.name", "NoArgument", r"has decide\(\) in place of decide\(observation\); see"),
        ("policy.name", "Number", r"has learn 5 in place of learn\(feedback\)"),
        (
            "policy.name",
            "nothing",
            "returns nothing; it must return the policy: airllm.policies.base",
        ),
        ("channel.model", "Channel", f"snr_db {BUG}26"),
        ("channel.model", "ShortChannel", r"has snr_db\(time_s\) in place of snr_db\(time_s, dir"),
        ("data.source", "pairs", f"pairs {BUG}31"),
        ("data.source", "nothing", "returns nothing; it must return the data set"),
        ("federated.aggregator", "ShortAggregator", r"has __call__\(updates\) in place of"),
        ("federated.hardware", "device", r"device raised TypeError: '>' not .*own_parts.py:34\)"),
    ],
)
def test_what_ones_own_code_raises_names_part_method_and_line(
    key, value, message, tiny_toml, workplace, monkeypatch, capsys
):
    (workplace / "own_parts.py").write_text(RAISING)
    mode = "federated" if key.startswith("federated") else "remote"
    quoted = f'["own_parts:{value}"]' if key.endswith("hardware") else f"own_parts:{value}"
    sets = (f"mode={mode}", "channel.bandwidth_hz=1e7", "data.eval_source=", f"{key}={quoted}")
    arguments = [part for text in sets for part in ("--set", text)]
    monkeypatch.setattr(sys, "argv", ["airllm", "run", str(tiny_toml), *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert re.search(f"error: {key} .own_parts:.*{message}", said), said
    assert "Traceback" not in said


def test_a_failed_run_of_a_sweep_says_the_same(tiny_toml, tmp_path, workplace):
    (workplace / "own_parts.py").write_text(RAISING)
    names = ("uniform", "own_parts:Policy(how='decide')")
    sweep = load_sweep(tiny_toml, (), {"policy.name": names, "channel.snr_db": (0.0,)})
    rows, errors = run_sweep(sweep, tmp_path / "sweep")
    assert [row["policy"] for row in rows] == ["uniform"]
    assert re.fullmatch(rf"policy.name .*: decide {BUG}9\)", *errors.values())


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "MemoryError"])
def test_an_interruption_and_the_want_of_memory_are_not_bugs_of_ones_own_code(error, workplace):
    (workplace / "own_parts.py").write_text(RAISING)
    part = make_own("policy", f"own_parts:Policy(how='learn', error={error!r})", **SIZES)
    with pytest.raises(BaseException, match="my bug") as raised:
        part.learn(None)
    assert raised.type.__name__ == error


def test_a_part_of_ones_own_is_what_it_was_but_for_what_it_raises(workplace):
    (workplace / "own_parts.py").write_text(RAISING)
    part = make_own("policy", "own_parts:Policy", **SIZES)
    assert isinstance(part, sys.modules["own_parts"].Policy)
    assert isinstance(part, Stateful)
    assert not hasattr(part, "is_exploring")
    restore(part, {"how": "decide"})
    for copied in (copy.deepcopy(part), pickle.loads(pickle.dumps(part))):
        assert state_of(copied) == {"how": "decide"}
        with pytest.raises(ValueError, match="decide raised KeyError"):
            copied.decide(None)


@pytest.mark.parametrize("buffer", [0, 2])
def test_what_an_aggregator_of_ones_own_returns_is_checked(buffer, tiny_toml, workplace):
    (workplace / "own_parts.py").write_text(RAISING)
    sets = ("mode=federated", "channel.bandwidth_hz=1e7", f"federated.buffer={buffer}")
    with pytest.raises(ValueError, match="own_parts:Aggregator must return an Adapter .*got list"):
        run_simulation(own(tiny_toml, *sets, "federated.aggregator=own_parts:Aggregator"))
