"""Settings over files over presets; every mistake named; dumped and loaded again the same."""

import math
from dataclasses import field, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic.dataclasses import dataclass

from channel import ChannelConfig
from channel.bounds import STRICT, Several
from channel.config import OrNone
from experiments.config.describe import describe_config
from experiments.config.loader import dump_config, load_config
from experiments.config.paths import find_config
from experiments.config.schema import PRESETS, ExperimentConfig, load_experiment
from experiments.sweep.sweep import load_sweep


def load(*sets, text=""):
    return load_config(ExperimentConfig, sets=sets, text=text, presets=PRESETS)


@dataclass(frozen=True, config=STRICT)
class Inner:
    ratio: float = 0.5
    flag: bool = False
    limit: OrNone[float] = None
    steps: tuple[float, ...] = (1.0, 2.0)
    names: OrNone[Several[str]] = None


@dataclass(frozen=True, config=STRICT)
class Outer:
    name: str = "a"
    count: int = 3
    inner: Inner = field(default_factory=Inner)


floats = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.text(), st.integers(-(2**60), 2**60), floats, st.booleans(), st.none() | floats,
    st.lists(floats).map(tuple),
)  # fmt: skip
def test_what_is_dumped_is_loaded_the_same(name, count, ratio, flag, limit, steps):
    config = Outer(name, count, Inner(ratio, flag, limit, steps))
    assert load_config(Outer, text=dump_config(config)) == config


@pytest.mark.parametrize("preset", ["iot-shared-1mhz", "paper", "umi-5g", "indoor"])
def test_a_resolved_configuration_does_not_change_when_loaded_again(preset):
    config = load(f"channel.preset={preset}", "policy.name=paper", "channel.deadline_s=0.5")
    assert load(text=dump_config(config)) == config


def test_settings_win_over_the_file_and_both_over_the_preset():
    text = '[channel]\npreset = "paper"\nbandwidth_hz = 5e6\ndeadline_s = 0.5\n'
    config = load("channel.deadline_s=0.25", text=text)
    assert config.channel.sharing == "orthogonal"
    assert config.channel.bandwidth_hz == 5e6
    assert config.channel.deadline_s == 0.25


def test_a_preset_can_be_changed_by_a_setting():
    assert load("channel.preset=paper").channel == ChannelConfig.from_preset("paper")


def test_a_policys_name_brings_its_preset_and_explicit_values_stay():
    config = load("policy.name=paper", "policy.ppo.hidden=32")
    assert (config.policy.ppo.hidden, config.policy.ppo.activation) == (32, "mish")


@pytest.mark.parametrize(
    ("setting", "key", "value"),
    [
        ("channel.snr_db=none", "snr_db", None),
        ("channel.snr_db=7", "snr_db", 7.0),
        ("channel.snr_choices_db=1,2.5", "snr_choices_db", (1.0, 2.5)),
        ("channel.snr_choices_db=[1, 2]", "snr_choices_db", (1.0, 2.0)),
        ("channel.bandwidth_hz=5e6", "bandwidth_hz", 5e6),
    ],
)
def test_values_are_read_as_their_fields_types(setting, key, value):
    assert getattr(load(setting).channel, key) == value


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "channel.bandwith_hz=1",
            "unknown config key channel.bandwith_hz; .* channel.bandwidth_hz",
        ),
        ("bandwidth_hz=1", "unknown config key bandwidth_hz; did you mean channel.bandwidth_hz"),
        ("channel=3", "channel is a section"),
        ("rounds=2.5", "rounds must be a whole number, got 2.5"),
        ("rounds=true", "rounds must be a whole number, got True"),
        ("channel.deadline_s=soon", "channel.deadline_s must be a number, got 'soon'"),
        ("sweep.snr_db=[]", "unknown config key sweep.snr_db"),
        ("policy.name=unifrom", "did you mean 'uniform'"),
        ("rounds", "--set must be key=value, got 'rounds'"),
        ("payload.adapter_rank=2", "payload.adapter_rank 2 must be at least training.r_max 8"),
        ("data.label_column=", "'classify' needs data.label_column"),
    ],
)
def test_mistakes_are_named(setting, message):
    with pytest.raises(ValueError, match=message):
        load(setting)


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ("inner.names=a,b", ("a", "b")),
        ("inner.names=a", ("a",)),
        ('inner.names=["a"]', ("a",)),
        ("inner.names=None", None),
    ],
)
def test_an_optional_list_is_read_like_any_other(setting, names):
    assert load_config(Outer, sets=[setting]).inner.names == names


def test_a_setting_is_one_value():
    assert load_config(Outer, sets=["name=1\ncount = 5"]) == Outer(name="1\ncount = 5")


def test_where_a_setting_names_another_preset_the_files_values_still_win():
    text = '[channel]\npreset = "umi-5g"\nbandwidth_hz = 5e6\n'
    channel = load("channel.preset=paper", text=text).channel
    assert (channel.preset, channel.sharing, channel.bandwidth_hz) == ("paper", "orthogonal", 5e6)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("inner.ratio=1" + 400 * "0", "inner.ratio must be finite, got 1000"),
        ("count=1" + 5000 * "0", r"count must be a whole number, got '1000.* \(5003 characters\)"),
        ("count=" + 5000 * "[", "count must be a whole number, got"),
    ],
)
def test_what_is_too_long_to_read_is_said_in_short(setting, message):
    with pytest.raises(ValueError, match=message) as error:
        load_config(Outer, sets=[setting])
    assert len(str(error.value)) < 160


def test_defaults_are_described_exactly():
    @dataclass(frozen=True)
    class Exact:
        carrier_hz: float = 3.5123456789e9
        band_hz: float = 1e6

    assert [row[2] for row in describe_config(Exact)] == ["3512345678.9", "1e+06"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"rounds = = 3", "is not valid TOML: .*line 1"),
        (b"rounds = 1" + 5000 * b"0", "is not valid TOML"),
        (b"rounds = " + 5000 * b"[", "is not valid TOML"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"channel = 3", "channel must be a table, got 3"),
        # Looking for a key like this one would take minutes.
        (b"a" * 50_000 + b" = 1", "unknown config key a+; `airllm config` lists all keys"),
        (b"[policy.ppo]\nhidden = 1000000000", "policy.ppo.hidden must be <= 4096"),
        (b"[data]\nsorce = 'x'", "unknown config key data.sorce; did you mean data.source"),
    ],
)
def test_bad_files_are_named(content, message, tmp_path):
    path = tmp_path / "c.toml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_config(ExperimentConfig, path, presets=PRESETS)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="nothing.toml does not exist"):
        load_config(ExperimentConfig, tmp_path / "nothing.toml")


def test_paths_and_bundled_names_may_be_text(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text("rounds = 3")
    for own in (path, str(path)):
        assert load_config(ExperimentConfig, own, presets=PRESETS).rounds == 3
    quick = load_experiment("quick")
    assert quick.sweep
    assert load_config(ExperimentConfig, "quick", presets=PRESETS) == quick
    assert load_sweep("quick").base.seed == quick.seed
    assert load_sweep(str(find_config("quick"))).base.seed == quick.seed


def test_settings_may_be_a_mapping():
    own = {
        "channel.snr_db": np.int64(3), "seed": 4, "policy.name": "uniform",
        "federated.ranks": np.arange(1, 3), "channel.doppler_hz": None, "data.label_column": "kind",
    }  # fmt: skip
    config = load_experiment(sets=own)
    assert (config.channel.snr_db, config.seed, config.policy.name) == (3.0, 4, "uniform")
    assert (config.federated.ranks, config.channel.doppler_hz) == ((1, 2), None)
    assert load_config(ExperimentConfig, text=dump_config(config), presets=PRESETS) == config


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (
            "channel.snr_db=0",
            r"list of settings, or a mapping; give \['channel.snr_db=0'",
        ),
        ({"chanel.snr_db": 0}, "unknown config key chanel.snr_db; did you mean channel.snr_db"),
        ({"rounds": "2"}, "rounds must be a whole number, got '2'"),
        ({"channel": {"snr_db": 0}}, "channel is a section; set one of its values"),
    ],
)
def test_settings_that_are_none_are_named(sets, message):
    with pytest.raises(ValueError, match=message):
        load_experiment(sets=sets)


def test_values_of_another_type_are_named_in_python_too():
    for values, message in (
        ({"rounds": "2"}, r"rounds\n.*valid integer .*='2'"),
        ({"training": None}, r"training\n.*instance of TrainingConfig .*=None"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(ExperimentConfig(), **values)


def test_numpy_numbers_are_taken_and_written():
    config = replace(ExperimentConfig(), seed=np.int64(3))
    assert "seed = 3\n" in dump_config(config)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["federated.aggregator=clipped"], "aggregator 'clipped' .*'airllm'.* mode = 'federated'"),
        (["federated.method=fedit"], r"aggregator 'naive' .federated.method 'fedit'. merges what"),
    ],
)
def test_an_aggregator_without_anything_to_merge_is_refused(sets, message):
    with pytest.raises(ValueError, match=message):
        load_experiment(sets=sets)
    load_experiment("federated", sets)


def test_a_key_beside_a_method_wins_over_it():
    own = load_experiment("federated", ["federated.method=fedit", "federated.aggregator=exact"])
    assert own.federated.aggregator == "exact"


def test_every_value_has_a_help_text():
    rows = list(describe_config(ExperimentConfig))
    assert len(rows) > 60
    assert [key for key, _, _, text in rows if not text] == []
    assert not any(math.isnan(float(d)) for _, kind, d, _ in rows if kind == "float" and d)


def test_a_files_policy_section_is_for_the_policy_that_it_names(tmp_path):
    path = tmp_path / "one.toml"
    path.write_text('[policy]\nname = "airllm"\npath = "some"\nrefine_std = 0.3\n')
    own = load_config(ExperimentConfig, path, ["policy.name=airllm"], presets=PRESETS).policy
    assert (own.path, own.refine_std) == ("some", 0.3)
    other = load_config(ExperimentConfig, path, ["policy.name=uniform"], presets=PRESETS).policy
    assert (other.path, other.refine_std) == ("", 0.1)
    sets = ["policy.name=paper", "policy.ppo.clip_coef=0.3"]
    paper = load_config(ExperimentConfig, path, sets, presets=PRESETS).policy
    assert (paper.ppo.clip_coef, paper.ppo.activation, paper.path) == (0.3, "mish", "")


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    path = tmp_path / "windows.toml"
    path.write_bytes(b"\xef\xbb\xbfrounds = 3\r\n")
    assert load_config(ExperimentConfig, path).rounds == 3
