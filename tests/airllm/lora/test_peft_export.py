"""What a device holds, loaded by PEFT, gives the same features and the same classes."""

import re
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModel, PeftConfig, PeftModel
from safetensors.torch import load_file

from airllm.lora.adapter import Adapter
from airllm.lora.multi_lora import MultiLora
from airllm.lora.peft_export import save_peft
from airllm.models.base import ModelConfig
from airllm.models.batches import Examples, tokenize
from airllm.models.head import Head
from airllm.models.microbatches import whole
from airllm.models.sources import load_base, minilm_source

TEXTS = ["A short text.", "Another one, and a little longer than the first."]
PAGE = Path(__file__).parents[3] / "docs" / "interchange.md"


def adapter_of(base, ranks):
    generator = torch.Generator().manual_seed(0)
    pairs = list(zip(ranks, base.specs, strict=True))
    return Adapter(
        tuple(torch.randn(r, s.in_features, generator=generator) / 4 for r, s in pairs),
        tuple(torch.randn(s.out_features, r, generator=generator) / 4 for r, s in pairs),
    )


def features(base, adapter, texts=TEXTS):
    batch = whole(base, Examples(tokenize(base, texts), [0] * len(texts)))
    with torch.no_grad(), MultiLora(base, None, [adapter]).applied_to(batch):
        return base.pooled(batch.input_ids, batch.attention_mask)


@pytest.mark.parametrize("family", ["bert", "opt", "gpt2", "llama"])
@pytest.mark.parametrize("pattern", ["mixed", "zero"])
def test_peft_loads_the_folder_and_gives_the_same_features(family, pattern, tmp_path):
    config = ModelConfig(name=f"tiny:{family}", precision="fp32", device="cpu")
    base = load_base(config, seed=1)
    ranks = [0 if pattern == "zero" else p % 4 for p in range(len(base.specs))]
    adapter = adapter_of(base, ranks)
    batch = whole(base, Examples(tokenize(base, TEXTS), [0, 0]))
    with torch.no_grad():
        bare = base.pooled(batch.input_ids, batch.attention_mask)
        ours = features(base, adapter)
        save_peft(adapter, base, str(tmp_path))
        fresh = load_base(config, seed=1)
        fresh.network = PeftModel.from_pretrained(fresh.network, str(tmp_path)).eval()
        theirs = fresh.pooled(batch.input_ids, batch.attention_mask)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
    assert torch.equal(ours, bare) == (pattern == "zero")


def test_auto_classes_find_the_base_model(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    tiny = load_base(ModelConfig(name="tiny:bert", precision="fp32", device="cpu"), seed=1)
    tiny.network.save_pretrained(tmp_path / "base")
    tiny.tokenizer.save_pretrained(tmp_path / "base")
    config = ModelConfig(name=str(tmp_path / "base"), precision="fp32", device="cpu")
    base = load_base(config)
    adapter = adapter_of(base, [2] * len(base.specs))
    save_peft(adapter, base, tmp_path / "adapter")
    # The tokenizer is looked for beside the adapter, and on the hub where it is not.
    base.tokenizer.save_pretrained(tmp_path / "adapter")
    ours = features(base, adapter)
    base.network = AutoPeftModel.from_pretrained(str(tmp_path / "adapter")).eval()
    batch = whole(base, Examples(tokenize(base, TEXTS), [0, 0]))
    with torch.no_grad():
        theirs = base.pooled(batch.input_ids, batch.attention_mask)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)


def test_a_trained_head_is_written_as_what_it_has_become(tmp_path):
    config = ModelConfig(name="tiny:bert", precision="fp32", device="cpu")
    base = load_base(config, seed=1, num_classes=2)
    adapter = adapter_of(base, [1] * len(base.specs))
    head = Head(torch.ones(2, base.num_features), torch.tensor([0.5, -0.5]))
    save_peft(adapter, base, tmp_path, head=head)
    batch = whole(base, Examples(tokenize(base, TEXTS), [0, 0]))
    with torch.no_grad(), MultiLora(base, head, [adapter]).applied_to(batch):
        pooled = base.pooled(batch.input_ids, batch.attention_mask)
        ours = base.logits(pooled, head.weight, head.bias)
    written = load_file(tmp_path / "head.safetensors")
    torch.testing.assert_close(pooled @ written["weight"].T + written["bias"], ours)
    PeftModel.from_pretrained(load_base(config, seed=1).network, str(tmp_path))  # without a warning


@pytest.mark.skipif(not minilm_source(), reason="MiniLM is not on this machine")
def test_the_pages_example_names_the_classes_that_we_do(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base = load_base(ModelConfig(name="minilm", precision="fp32", device="cpu", max_length=8))
    adapter = adapter_of(base, [p % 3 for p in range(len(base.specs))])
    head = Head(torch.randn(3, base.num_features, generator=torch.Generator().manual_seed(1)),
                torch.tensor([0.1, 0.0, -0.1]))  # fmt: skip
    names = ["os", "a name, with\na second line", "torch"]
    save_peft(adapter, base, "adapter", head=head, label_names=names)
    assert PeftConfig.from_pretrained("adapter").base_model_name_or_path.endswith("L6-v2")
    example = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)[1]
    assert example.count('"sentence-transformers/all-MiniLM-L6-v2"') == 1
    scope = {}
    source = repr(str(minilm_source()))
    exec(example.replace('"sentence-transformers/all-MiniLM-L6-v2"', source), scope)
    ours = base.logits(features(base, adapter, scope["texts"]), head.weight, head.bias)
    theirs = scope["pooled"] @ scope["weight"].T + scope["bias"]
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)
    assert capsys.readouterr().out.strip() == str([names[i] for i in ours.argmax(dim=1)])
    assert (scope["about"]["pooling"], scope["about"]["max_length"]) == ("mean", "8")
