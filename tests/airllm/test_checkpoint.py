"""States come back as they were, and damaged files are refused by name."""

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
