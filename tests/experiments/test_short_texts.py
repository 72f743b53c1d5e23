"""Texts in which nothing is to be predicted, and names in lists that match nothing."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from airllm.models.base import ModelConfig
from airllm.models.batches import Examples, tokenize
from airllm.models.head import train_head
from airllm.models.sources import load_base
from airllm.models.tiny import build_tiny, byte_tokenizer
from cloud.training.adalora import train_adalora
from cloud.training.lora import TrainingConfig
from experiments.assembly.workbench import workbench_for
from experiments.config import load_experiment


def bench(folder, texts, **values):
    """A causal tiny model whose tokenizer puts nothing around a text."""
    network, _ = build_tiny("llama", "causal", seed=0)
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = _nothing()
    network.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [json.dumps({"text": text}) for text in texts]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    sets = [
        f"model.name={folder / 'model'}", f"data.source={folder / 'rows.jsonl'}",
        "model.task=causal", "data.label_column=", "num_devices=2", "rounds=1", "runtime.threads=1",
        "training.steps_per_round=8", "model.device=cpu", "model.precision=fp32",
        *(f"{key}={value}" for key, value in values.items()),
    ]  # fmt: skip
    return workbench_for(load_experiment(sets=sets))


def _nothing():
    from tokenizers.processors import TemplateProcessing

    return TemplateProcessing(single="$A", special_tokens=[])


@pytest.mark.parametrize("batch_size", [1, 4])
def test_texts_of_one_token_are_left_out(tmp_path, batch_size):
    texts = ["a", "two words"] * 20
    found = bench(tmp_path, texts, **{"training.batch_size": batch_size})
    assert set(found.splits.train.texts) == set(found.splits.evaluation.texts) == {"two words"}
    assert np.isfinite(found.lora_trajectory.losses).all()


@pytest.mark.parametrize("text", ["a", "b"])
def test_data_with_nothing_to_predict_is_one_sentence(tmp_path, text):
    with pytest.raises(
        ValueError, match=r"data.source .*none of its 16 has 2 tokens.*longer texts"
    ):
        bench(tmp_path, [text] * 20).splits  # noqa: B018


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("policy.hide=complexty", "policy.hide.0. .* did you mean 'complexity'"),
        ("learn.codings=residuals", "learn.codings.0. .* did you mean 'residual'"),
        ("learn.presets=iot-shared-1mhx", "learn.presets .* did you mean 'iot-"),
    ],
)
def test_a_name_in_a_list_that_matches_nothing_is_named_with_the_nearest(setting, message):
    with pytest.raises(ValueError, match=message):
        load_experiment(sets=[setting])


@pytest.mark.parametrize(("r_max", "budget"), [(4, 1.0), (1, 0.5), (4, 0.9)])
def test_adalora_with_nothing_to_prune_keeps_all(r_max, budget):
    base = load_base(ModelConfig(name="tiny:bert", precision="fp32", device="cpu"))
    ids = tokenize(base, ["one text", "another one"] * 4)
    head = train_head(
        base, ids, [0, 1] * 4, num_classes=2, steps=2, learning_rate=0.1, weight_decay=0.0,
        batch_size=4, seed=0,
    )  # fmt: skip
    config = replace(
        TrainingConfig(), r_max=r_max, adalora_budget=budget, steps_per_round=3, batch_size=4
    )
    found = train_adalora(base, head, Examples(ids, [0, 1] * 4), config, num_rounds=2, seed=0)
    assert (found.ranks == r_max).all()
    assert all(torch.isfinite(up).all() for up in found.adapters[-1].up)
