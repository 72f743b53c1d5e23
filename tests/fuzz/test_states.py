"""Saved states and policies: refused with the file's name, or read as they were written."""

import copy
import zlib

import numpy as np
import pytest
import torch

from airllm.checkpoint import load_state, save_state
from airllm.policies.registry import PolicyConfig, make_policy
from airllm.policies.store import load_policy, save_policy
from airllm.rl.ddim import DdimConfig
from airllm.rl.ppo import PpoConfig

STATE = {
    "weights": [torch.arange(6.0).reshape(2, 3), {0: torch.ones(2, dtype=torch.int64)}],
    "raw": b"\x00\xff",
    "count": 3,
    "name": "x",
    "none": None,
}
WORDS = [
    b"tensor", b"dict", b"list", b"t0", b"t1", b"null", b"[[[[[[[[", b"1e999", b"-1",
    b"F32", b"I64", b"BOOL", b"[2,3]", b"[4294967296]", b"data_offsets", b"[0,24]",
    b'\\"', b"sha256 tree",
]  # fmt: skip


def is_same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(is_same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(is_same, a, b))
    return type(a) is type(b) and a == b


def test_a_damaged_state_is_refused_or_is_the_state_that_was_saved(fuzz, in_memory):
    path = in_memory / "state.safetensors"
    states = [STATE, {"only": torch.zeros(40)}]
    originals = []
    for state in states:
        save_state(state, path)
        originals.append(path.read_bytes())

    def check(data):
        path.write_bytes(data)
        try:
            state = load_state(path)
        except ValueError as error:
            assert "state.safetensors" in str(error)
        else:
            assert any(is_same(state, known) for known in states)

    fuzz(check, originals, quick=3000, words=WORDS)


DEPTHS, KINDS = [0, 0, 1, 1], ["q", "v", "q", "v"]


@pytest.fixture
def policy_folder(in_memory):
    config = PolicyConfig(
        ppo=PpoConfig(hidden=4), ddim=DdimConfig(hidden=4, num_blocks=1, train_steps=10,
                                                 sampling_steps=2),
    )  # fmt: skip
    policy = make_policy(config, num_projections=4, depths=DEPTHS, kinds=KINDS, r_max=4, seed=0)
    save_policy(policy, in_memory, depths=DEPTHS, kinds=KINDS, r_max=8, facts={"updates": 1})
    return in_memory


def load(folder):
    return load_policy(str(folder), depths=DEPTHS, kinds=KINDS, r_max=8, is_exploring=False, seed=0)


def test_a_damaged_policy_is_refused(fuzz, policy_folder):
    path = policy_folder / "policy.safetensors"
    original = path.read_bytes()
    known = load(policy_folder).ppo.model.actor[0].weight.detach().numpy()

    def check(data):
        path.write_bytes(data)
        try:
            policy = load(policy_folder)
        except ValueError as error:
            assert "policy" in str(error)
        else:
            np.testing.assert_array_equal(policy.ppo.model.actor[0].weight.detach(), known)

    fuzz(check, [original], quick=500, words=WORDS)


BAD = [None, True, -1, 0, 10**9, 1e308, float("nan"), "none", [], [1], {}, torch.ones(3)]


def test_a_policy_whose_kinds_are_no_text_is_one_for_another_model(policy_folder):
    """Found by the fuzzer: the sentence that says so ended in a TypeError."""
    path = policy_folder / "policy.safetensors"
    state = load_state(path)
    state["about"]["kinds"] = [1, 2]
    save_state(state, path)
    with pytest.raises(ValueError, match="was learned for a model with 4 projections"):
        load(policy_folder)


def test_a_policy_made_to_mislead_is_refused_or_has_sane_sizes(fuzz, policy_folder):
    """The checksums are right, what they stand over is not: from a peer with bad intentions."""
    path = policy_folder / "policy.safetensors"
    original = load_state(path)

    def check(data):
        rng = np.random.default_rng(zlib.crc32(data))
        state = copy.deepcopy(original)
        for _ in range(int(rng.integers(1, 3))):
            _spoil(state, rng)
        save_state(state, path)
        try:
            load(policy_folder)
        except ValueError as error:
            assert "policy" in str(error)

    fuzz(check, [b"seed"], quick=200)


def _spoil(state, rng):
    """Take out, or replace, one value somewhere in nested dictionaries."""
    node = state
    while True:
        key = list(node)[int(rng.integers(len(node)))]
        if isinstance(node[key], dict) and node[key] and rng.random() < 0.9:
            node = node[key]
        elif rng.random() < 0.2:
            del node[key]
            return
        else:
            node[key] = BAD[int(rng.integers(len(BAD)))]
            return
