"""The three parametrisations learn, repeat themselves, and leave the base as it was."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from airllm.lora.adapter import Adapter
from airllm.lora.evaluation import evaluate
from airllm.models.base import ModelConfig
from airllm.models.batches import Examples, tokenize
from airllm.models.head import Head
from airllm.models.microbatches import whole
from airllm.models.sources import load_base
from cloud.training.adalora import orthogonality, train_adalora
from cloud.training.lora import TrainingConfig, probe_texts, train_lora
from cloud.training.masked import MaskedTrainer

# The label is the order of the two words: mean-pooled features of a frozen random model hardly
# tell, so a head alone is near chance and an adapter is needed.
TEXTS = [f"{a} {b}" for a in ("ab", "ba") for b in ("ab", "ba")] * 8
LABELS = [int(t.split()[0] == t.split()[1]) for t in TEXTS]
CONFIG = TrainingConfig(
    r_max=4, steps_per_round=30, batch_size=16, learning_rate=1e-2, lora_alpha=8
)


@pytest.fixture(scope="module")
def world():
    base = load_base(ModelConfig(name="tiny:bert", precision="fp32", device="cpu"), seed=0)
    data = Examples(tokenize(base, TEXTS), LABELS)
    # A head as wide awake as a trained one, but pointing nowhere in particular.
    head = Head(torch.randn(2, 32, generator=torch.Generator().manual_seed(0)), torch.zeros(2))
    return base, head, data


def loss_of(world, adapter):
    base, head, data = world
    return evaluate(base, head, adapter, data).loss


def bare_features(world):
    base, _, data = world
    batch = whole(base, data.take(np.arange(4)))
    with torch.no_grad():
        return base.pooled(batch.input_ids, batch.attention_mask)


@pytest.mark.parametrize("train", [train_lora, train_adalora])
def test_a_trajectory_learns_and_leaves_the_base_bare(world, train):
    base, head, data = world
    before = bare_features(world)
    trajectory = train(base, head, data, CONFIG, num_rounds=3, seed=1)
    assert torch.equal(bare_features(world), before)
    assert len(trajectory.adapters) == 3
    assert trajectory.ranks.shape == (3, len(base.specs))
    untouched = loss_of(world, Adapter.zero(base.specs))
    assert loss_of(world, trajectory.adapters[-1]) < 0.5 * untouched
    assert trajectory.losses[-1] < trajectory.losses[0]


@pytest.mark.parametrize("train", [train_lora, train_adalora])
def test_the_same_seed_gives_the_same_master(world, train):
    base, head, data = world
    runs = [train(base, head, data, CONFIG, num_rounds=2, seed=s) for s in (1, 1, 2)]
    for first, again in zip(runs[0].adapters, runs[1].adapters, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first.up, again.up, strict=True))
    assert not torch.equal(runs[0].adapters[0].up[0], runs[2].adapters[0].up[0])


def test_adalora_prunes_to_its_budget_and_the_folded_update_is_what_trained(world):
    base, head, data = world
    trajectory = train_adalora(base, head, data, CONFIG, num_rounds=3, seed=1)
    assert trajectory.ranks[0].max() == CONFIG.r_max
    assert trajectory.ranks[-1].sum() == 2 * len(base.specs)  # half of r_max 4, on average
    assert list(trajectory.adapters[-1].ranks) == list(trajectory.ranks[-1])
    # Its last mean training loss is of the same data: the folding has lost nothing.
    assert loss_of(world, trajectory.adapters[-1]) <= trajectory.losses[-1] * 1.05


def test_masked_training_moves_only_what_is_active(world):
    base, head, data = world
    trainer = MaskedTrainer(base, head, data, CONFIG, num_rounds=2, seed=1)
    ranks = np.full((2, len(base.specs)), 1)
    ranks[1, 0] = 3
    adapter = trainer.after(0, ranks)
    assert (adapter.energy(4)[0] > 0).tolist() == [True, True, True, False]
    assert (adapter.energy(4)[1] > 0).tolist() == [True, False, False, False]
    later = trainer.after(0, np.full((2, len(base.specs)), 4))
    assert loss_of(world, later) < loss_of(world, Adapter.zero(base.specs))


def test_masked_training_is_that_of_plain_autograd(float64):
    """Two rounds under ranks, by merged weights, one padded batch and plain AdamW."""
    base = load_base(ModelConfig(name="tiny:bert", precision="fp32", device="cpu"), seed=0)
    data = Examples([[7 + i % 5] * (3 + i) for i in range(16)], [i % 2 for i in range(16)])
    head = Head(torch.randn(2, 32, generator=torch.Generator().manual_seed(0)), torch.zeros(2))
    config = TrainingConfig(r_max=3, steps_per_round=2, batch_size=16, learning_rate=1e-2)
    trainer = MaskedTrainer(base, head, data, config, num_rounds=2, seed=1)
    down, up, weight = (
        [t.detach().clone().requires_grad_() for t in own]
        for own in (trainer.down, trainer.up, trainer.weight)
    )
    optimiser = torch.optim.AdamW([*down, *up, *weight], weight_decay=0.0)
    width = max(map(len, data.ids))
    ids = torch.tensor([row + [base.pad_id] * (width - len(row)) for row in data.ids])
    mask = (torch.arange(width) < torch.tensor([[len(row)] for row in data.ids])).long()
    scale = config.lora_alpha / config.r_max
    for round_index in range(2):
        ranks = (np.arange(len(base.specs)) + round_index) % 4
        adapter = trainer.after(round_index, ranks[None])
        for step in range(2):
            optimiser.param_groups[0]["lr"] = 1e-2 * (1.0 - (2 * round_index + step) / 4)
            weights = {
                f"{spec.name}.weight": module.weight
                + (u * (w * (torch.arange(3) < int(rank)) * scale)) @ d
                for spec, module, d, u, w, rank in zip(
                    base.specs, base.modules, down, up, weight, ranks, strict=True
                )
            }
            inputs = {"input_ids": ids, "attention_mask": mask}
            hidden = torch.func.functional_call(base.network, weights, (), inputs)[0]
            features = (hidden * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
            loss = F.cross_entropy(F.linear(features, head.weight), torch.tensor(data.labels))
            loss = loss + orthogonality([*down, *(u.T for u in up)], config.orthogonality)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        for p in range(len(base.specs)):
            found, expected = adapter.delta(p), (up[p] * weight[p] * scale) @ down[p]
            torch.testing.assert_close(found, expected.detach(), rtol=1e-6, atol=1e-8)


def test_dropout_changes_training_and_nothing_afterwards(world):
    base, head, data = world
    dropped = TrainingConfig(
        r_max=4, steps_per_round=5, batch_size=16, learning_rate=1e-2, dropout=0.5
    )
    plain = TrainingConfig(r_max=4, steps_per_round=5, batch_size=16, learning_rate=1e-2)
    first, again, other = (
        train_lora(base, head, data, config, num_rounds=1, seed=1).adapters[0]
        for config in (dropped, dropped, plain)
    )
    assert torch.equal(first.up[0], again.up[0])
    assert not torch.equal(first.up[0], other.up[0])


def test_probe_texts_differ_between_rounds_and_repeat(world):
    _, _, data = world

    def texts(r, devices=1, adapters=1, examples=8):
        config = TrainingConfig(gain_examples=examples)
        return probe_texts(
            data, config, seed=0, round_index=r, num_devices=devices, num_adapters=adapters
        )

    assert texts(0)[0] == texts(0)[0]
    assert texts(0)[0] != texts(3)[0]
    # Each adapter has texts to itself; what devices have in common has those of several.
    assert [len(part.ids) for part in texts(0, 3, 3, examples=4)] == [4, 4, 4]
    assert [len(part.ids) for part in texts(0, 1, 1, examples=20)] == [10, 10]
    assert sum(len(part.ids) for part in texts(0, 3, 1, examples=4)) == 12
    assert sum(len(part.ids) for part in texts(0, 1, 1, examples=4)) == 4


def test_divergence_is_an_error_with_a_remedy(world):
    base, head, data = world
    config = TrainingConfig(
        r_max=2, steps_per_round=5, batch_size=8, learning_rate=1e30, schedule="constant"
    )
    with pytest.raises(ValueError, match=r"diverged .* lower it"):
        train_lora(base, head, data, config, num_rounds=1, seed=0)
