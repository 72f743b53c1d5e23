"""States come back as they were, and damaged files are refused by name."""

import os

import pytest
import torch

from airllm.checkpoint import load_state, save_state


def test_a_state_comes_back_as_it_was(tmp_path):
    weights = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    state = {
        "a": [weights, {0: weights.T, "empty": torch.zeros(0, 5)}, []],
        "same": weights,
        "number": 0.1 + 0.2,
        "nan": float("nan"),
        "none": None,
        "yes": True,
        "words": "ü",
    }
    save_state(state, tmp_path / "state.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]
    back = load_state(tmp_path / "state.safetensors")
    assert torch.equal(back["a"][0], weights)
    assert torch.equal(back["a"][1][0], weights.T)
    assert back["a"][1]["empty"].shape == (0, 5)
    assert back["number"] == state["number"]
    assert back["nan"] != back["nan"]
    assert (back["none"], back["yes"], back["words"]) == (None, True, "ü")


def test_what_is_no_state_is_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    with pytest.raises(ValueError, match="does not exist"):
        load_state(path)
    with pytest.raises(TypeError, match="got set"):
        save_state({"a": {1, 2}}, path)
    assert not list(tmp_path.iterdir())
    save_state({"a": torch.ones(100)}, path)
    whole = path.read_bytes()
    for data in (b"", b"x" * 50, whole[:-8], whole[:60]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"state\.safetensors is damaged"):
            load_state(path)


def test_a_single_changed_bit_is_noticed_wherever_it_is(tmp_path):
    """Found by the fuzzer: safetensors has no checksum, a weight could change unnoticed."""
    path = tmp_path / "state.safetensors"
    save_state({"a": torch.arange(4.0), "n": 7, "raw": b"ab"}, path)
    whole = path.read_bytes()
    start = whole.index(b"__metadata__")
    for position in range(start, len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        try:
            state = load_state(path)
        except ValueError:
            continue
        # Padding between header and data is the one thing that means nothing.
        assert torch.equal(state["a"], torch.arange(4.0))
        assert (state["n"], state["raw"]) == (7, b"ab")
        assert whole[position] == 0x20
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="the checksum of a tensor does not match"):
        load_state(path)


def test_equal_tensors_are_stored_once_and_come_back_apart(tmp_path):
    path = tmp_path / "state.safetensors"
    same = torch.ones(1000)
    save_state([same, same.clone()], path)
    assert path.stat().st_size < 1.5 * 4000
    whole = path.read_bytes()
    save_state([same, same.clone()], path)
    assert path.read_bytes() == whole
    first, second = load_state(path)
    first += 1
    assert second.max() == 1


def test_a_state_takes_its_place_only_once_it_is_on_the_disk(tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    save_state({"a": 1}, path)
    events = []
    real_sync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("fsync"), real_sync(fd))[1])
    monkeypatch.setattr(
        os, "replace", lambda a, b: (events.append("replace"), real_replace(a, b))[1]
    )
    save_state({"a": 2}, path)
    assert events == ["fsync", "replace", "fsync"]

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_state({"a": 3}, path)
    assert load_state(path) == {"a": 2}
    assert list(tmp_path.iterdir()) == [path]


def test_equal_states_are_equal_files(tmp_path):
    for attempt in range(20):
        save_state({"a": torch.ones(3), "b": torch.zeros(2, 2), "c": 1.5}, tmp_path / f"{attempt}")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
