"""A value that a section does not take, in one sentence: its key, its bound, and what it was."""

import re

import numpy as np
import pytest

from experiments.config import load_experiment

MISTAKES = {
    "rounds=0": "rounds must be >= 1, got 0",
    "seed=-1": "seed must be >= 0, got -1",
    "seed=99999999999999999999": "seed must be < 9.22337e+18, got 99999999999999999999",
    "mode=local": "mode must be 'remote' or 'federated', got 'local'",
    "model.task=translate": "model.task must be 'classify' or 'causal', got 'translate'",
    "model.precision=fp8": "model.precision must be 'auto', 'fp32' or 'bf16', got 'fp8'",
    "model.max_length=1": "model.max_length must be >= 2, got 1",
    "model.name=": "model.name must not be empty; give at least one value",
    "data.partition=irichlet": "data.partition must be 'iid', 'dirichlet' or 'complexity', got "
    "'irichlet'; did you mean 'dirichlet'?",
    "data.eval_fraction=1.0": "data.eval_fraction must be < 1, got 1.0",
    "data.max_train=-1": "data.max_train must be >= 0, got -1",
    "data.packages=torch": "data.packages must name at least two packages, got ['torch']",
    "data.encoding=klingon": "data.encoding must be 'auto' or an encoding such as 'utf-8' or "
    "'utf-16', got 'klingon'",
    "training.r_max=300": "training.r_max must be <= 255, got 300",
    "training.learning_rate=0.0": "training.learning_rate must be > 0, got 0.0",
    "training.learning_rate=inf": "training.learning_rate must be finite, got inf",
    "training.dropout=1.0": "training.dropout must be < 1, got 1.0",
    "federated.hardware=[]": "federated.hardware must not be empty; give at least one value",
    "federated.ranks=[4, 0]": "federated.ranks[1] must be >= 1, got 0",
    "federated.privacy_noise=1e-9": "federated.privacy_noise must be 0 (none) or >= 1e-6, got "
    "1e-09",
    "channel.bandwidth_hz=-1": "channel.bandwidth_hz must be > 0, got -1",
    "channel.csi_quantisation_db=1e-6": "channel.csi_quantisation_db must be 0 or >= 0.001, got "
    "1e-06",
    "channel.energy.amplifier_efficiency=0": "channel.energy.amplifier_efficiency must be > 0, got "
    "0",
    "channel.link.max_tries=soon": "channel.link.max_tries must be a whole number, got 'soon'",
    "channel.snr_choices_db=1,x": "channel.snr_choices_db[1] must be a number, got 'x'",
    "channel.trace_unit=furlong": "channel.trace_unit must be one of bit/s, kbit/s, mbit/s, "
    "mbits/sec, gbit/s, got 'furlong'",
    "policy.hide=lnk": "policy.hide[0] must be 'link', 'complexity', 'loss', 'round' or 'utility', "
    "got 'lnk'; did you mean 'link'?",
    "policy.ppo.gamma=1.5": "policy.ppo.gamma must be <= 1, got 1.5",
    "policy.ddim.train_steps=1": "policy.ddim.train_steps must be >= 2, got 1",
    "policy.ddim.sampling_steps=2000": "policy.ddim.sampling_steps 2000 must not exceed "
    "policy.ddim.train_steps 1000",
    "payload.coding=delta": "payload.coding must be 'absolute' or 'residual', got 'delta'",
    "reward.cost_weight=true": "reward.cost_weight must be a number, got True",
    "runtime.stacked=yes": "runtime.stacked must be true or false, got 'yes'",
    "learn.seeds=[]": "learn.seeds must not be empty; give at least one value",
    "learn.codings=absolut": "learn.codings[0] must be 'absolute' or 'residual', got 'absolut'; "
    "did you mean 'absolute'?",
}  # fmt: skip


@pytest.mark.parametrize("setting", MISTAKES)
def test_a_bad_value_is_told_in_one_sentence(setting):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        load_experiment(sets=[setting])
    assert str(error.value) == MISTAKES[setting]


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({"rounds": "2"}, "rounds must be a whole number, got '2'"),
        ({"training.r_max": 2.5}, "training.r_max must be a whole number, got 2.5"),
        ({"training.dropout": np.zeros(2)}, "training.dropout must be a number, got (0.0, 0.0)"),
        ({"model.name": None}, "model.name must be a string, got None"),
        ({"data.source": print}, "data.source cannot be read: <built-in function print> is no"),
    ],
)
def test_what_python_hands_over_is_named_by_its_key(sets, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_experiment(sets=sets)
