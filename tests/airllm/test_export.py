"""What a device holds, loaded by PEFT, gives the same logits."""

import pytest
import torch
from peft import PeftModel

from airllm.export import save_peft
from airllm.lora import Adapter
from airllm.models import ModelConfig, load_base
from airllm.tuning import collate, tokenize

TEXTS = ["A short text.", "Another one, and a little longer than the first."]


@pytest.mark.parametrize("family", ["bert", "opt", "gpt2", "llama"])
@pytest.mark.parametrize("pattern", ["mixed", "zero"])
def test_peft_loads_the_folder_and_gives_the_same_features(family, pattern, tmp_path):
    config = ModelConfig(name=f"tiny:{family}", precision="fp32", device="cpu")
    base = load_base(config, seed=1)
    generator = torch.Generator().manual_seed(0)
    ranks = [0 if pattern == "zero" else p % 4 for p in range(len(base.specs))]
    adapter = Adapter(
        tuple(
            torch.randn(r, s.in_features, generator=generator) / 4
            for r, s in zip(ranks, base.specs, strict=True)
        ),
        tuple(
            torch.randn(s.out_features, r, generator=generator) / 4
            for r, s in zip(ranks, base.specs, strict=True)
        ),
    )
    batch = collate(base, tokenize(base, TEXTS), [0, 0])
    with torch.no_grad():
        bare = base.pooled(batch.input_ids, batch.attention_mask)
        base.bank.load_adapters([adapter], base.device)
        ours = base.pooled(batch.input_ids, batch.attention_mask)
        save_peft(adapter, base, tmp_path)
        fresh = load_base(config, seed=1)
        fresh.network = PeftModel.from_pretrained(fresh.network, str(tmp_path)).eval()
        theirs = fresh.pooled(batch.input_ids, batch.attention_mask)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
    assert torch.equal(ours, bare) == (pattern == "zero")
