"""What could be sent to whom, and what it is worth."""

import pytest
import torch

from airllm.lora.adapter import Adapter
from airllm.lora.evaluation import evaluate
from airllm.lora.residuals import residuals_of
from airllm.models.base import ModelConfig
from airllm.models.batches import Examples, tokenize
from airllm.models.head import Head
from airllm.models.sources import load_base

TEXTS = [f"text number {i} with {'more ' * (i % 5)}words" for i in range(24)]
LABELS = [i % 3 for i in range(24)]


def test_an_absolute_updates_worths_add_up_to_what_it_brings():
    """By the midpoint rule, which the gains at nothing are far from."""
    base = load_base(ModelConfig(name="tiny:bert", precision="fp32", device="cpu"), seed=0)
    generator = torch.Generator().manual_seed(0)
    head = Head(torch.randn(3, base.num_features, generator=generator), torch.zeros(3))
    master = Adapter(
        tuple(torch.randn(2, s.in_features, generator=generator) / 16 for s in base.specs),
        tuple(torch.randn(s.out_features, 2, generator=generator) / 16 for s in base.specs),
    )
    zero = Adapter.zero(base.specs)
    examples = Examples(tokenize(base, TEXTS), LABELS)
    change = evaluate(base, head, zero, examples).loss - evaluate(base, head, master, examples).loss

    def utility(importance):
        found = residuals_of(
            base, head, master, [zero, master], importance=importance, is_residual=False,
            r_max=2, texts=lambda num_adapters: [examples],
        )  # fmt: skip
        assert (found.utility[0] == found.utility[1]).all()  # whatever a device holds
        return found.utility[0].sum()

    assert utility("second-order") == pytest.approx(change, rel=0.05)
    assert utility("gain-at-start") != pytest.approx(change, rel=0.3)
