"""Configurations: accepted whole, or refused in a sentence."""

from experiments.config.loader import dump_config, load_config
from experiments.config.paths import CONFIGS
from experiments.config.schema import PRESETS, ExperimentConfig

TEXTS = [path.read_bytes() for path in sorted(CONFIGS.glob("*.toml"))]
WORDS = [
    b"true", b"-1", b"0", b"1e400", b"nan", b"inf", b"[]", b"[1, 2]", b'""', b'"none"', b"{}",
    b"9" * 5000, b"[" * 500, b"'''", b"\n[channel]\n", b"\n[policy.ppo]\n", b"1979-05-27",
    b"rounds", b"snr_db", b'"trace:x"', b'"paper"', b"\0", b"\xff",
    b"channel.link.adaptation = 'cqi'",
]  # fmt: skip


def test_a_configuration_is_accepted_or_refused_in_a_sentence(fuzz, in_memory):
    path = in_memory / "config.toml"

    def check(data):
        path.write_bytes(data)
        try:
            config = load_config(ExperimentConfig, path, presets=PRESETS)
        except ValueError as error:
            assert str(error)
        else:
            text = dump_config(config)
            assert dump_config(load_config(ExperimentConfig, text=text, presets=PRESETS)) == text

    fuzz(check, TEXTS, quick=400, words=WORDS)


SETS = [b"channel.snr_db=5", b"policy.name=paper", b"rounds=3", b"data.packages=a,b"]


def test_a_setting_is_accepted_or_refused_in_a_sentence(fuzz):
    def check(data):
        try:
            load_config(ExperimentConfig, sets=[data.decode("utf-8", "replace")], presets=PRESETS)
        except ValueError as error:
            assert str(error)

    fuzz(check, SETS, quick=400, words=WORDS)
