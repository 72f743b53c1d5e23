"""Which networks work is found by trying them; those that do not are refused in a sentence."""

import json

import pytest
import torch
import transformers as hf

from airllm.lora.adapter import Adapter
from airllm.lora.evaluation import evaluate
from airllm.lora.multi_lora import MultiLora
from airllm.models.base import BaseModel, ModelConfig
from airllm.models.batches import Examples, join, tokenize
from airllm.models.flops import forward_flops
from airllm.models.microbatches import whole
from airllm.models.sources import load_base
from airllm.models.tiny import byte_tokenizer

SHAPE = dict(
    vocab_size=260, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
    intermediate_size=64, max_position_embeddings=34, pad_token_id=0, bos_token_id=1,
    eos_token_id=2,
)  # fmt: skip
DEBERTA = dict(relative_attention=True, pos_att_type=["c2p", "p2c"], share_att_key=True)
BART = dict(
    d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
    decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
)  # fmt: skip
T5 = dict(d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=2)


def network(family, task="classify", **values):
    loader = hf.AutoModelForCausalLM if task == "causal" else hf.AutoModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return loader.from_config(hf.AutoConfig.for_model(family, **{**SHAPE, **values}))


def base_of(family, task="classify", tokenizer=None, **values):
    targets, length = values.pop("targets", ()), values.pop("max_length", 16)
    config = ModelConfig(
        name=family, task=task, targets=targets, max_length=length, precision="fp32", device="cpu"
    )
    return BaseModel(config, network(family, task, **values), tokenizer or byte_tokenizer())


@pytest.mark.parametrize(
    ("family", "values"),
    [
        ("roberta", {}),
        ("distilbert", {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}),
        ("electra", {"embedding_size": 16}),
        ("mpnet", {}),
        ("gpt_neox", {}),
        ("mistral", {"num_key_value_heads": 2}),
        ("gemma", {"num_key_value_heads": 1, "head_dim": 8}),
        ("qwen2", {"num_key_value_heads": 2}),
    ],
)
def test_families_that_work(family, values):
    base = base_of(family, **values)
    assert {spec.depth for spec in base.specs} == {0, 1}
    assert base.num_features == 32


@pytest.mark.parametrize(
    ("family", "task", "values", "reason"),
    [
        ("t5", "classify", T5, "encoder-decoder"),
        ("bart", "classify", BART, "encoder-decoder"),
        ("vit", "classify", {}, "takes no short text"),
        ("canine", "classify", {}, "takes no short text"),
        ("fnet", "classify", {}, "padding changes its output"),
        ("bert", "causal", {}, "sees the tokens that model.task 'causal' predicts"),
        ("roberta", "causal", {}, "sees the tokens that model.task 'causal' predicts"),
        ("deberta-v2", "classify", DEBERTA, "key_proj, attention.self.query_proj do not each see"),
        ("mamba", "causal", {}, "mixer.dt_proj do not each see"),
    ],
)
def test_a_family_that_does_not_work_is_refused(family, task, values, reason):
    with pytest.raises(ValueError, match=rf"model.name '{family}' does not work.*{reason}.*BERT"):
        base_of(family, task, **values)


def test_targets_leave_out_the_projections_that_see_other_than_tokens():
    base = base_of("deberta-v2", **DEBERTA, targets=("value_proj",))
    assert [spec.kind for spec in base.specs] == ["attention.self.value_proj"] * 2


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "camembert", "mpnet"])
@pytest.mark.parametrize("pad", [0, 1])
def test_positions_begin_behind_that_of_the_padding(family, pad):
    pads = {"pad_token_id": pad}
    usable = 32 if family == "mpnet" else 34 - pad - 1  # mpnet: its padding's position is always 1
    assert base_of(family, **pads, max_length=usable)
    for length in (usable + 1, 34, 35):
        if length > usable:
            with pytest.raises(ValueError, match=rf"max_length {length} exceeds the {usable} "):
                base_of(family, **pads, max_length=length)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_as_many_tokens_as_there_are_positions(family):
    assert base_of(family, max_length=34)
    with pytest.raises(ValueError, match="max_length 35 exceeds the 34 positions"):
        base_of(family, max_length=35)


def test_a_shared_layer_counts_as_often_as_it_is_passed():
    once, twice = (base_of("albert", embedding_size=16, num_hidden_layers=n) for n in (1, 2))
    none = torch.zeros(len(once.specs), dtype=torch.long).numpy()
    assert forward_flops(twice, (1, 8), none) == 2 * forward_flops(once, (1, 8), none)


@pytest.mark.parametrize("task", ["classify", "causal"])
def test_a_pad_token_without_an_embedding_is_masked(task):
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    base, plain = base_of("llama", task, tokenizer), base_of("llama", task)
    batches = [whole(b, Examples(tokenize(b, ["short", "a longer text"]), [0, 1]))
               for b in (base, plain)]  # fmt: skip
    outputs = [b.hidden(x.input_ids, x.attention_mask) for b, x in zip((base, plain), batches,
                                                                       strict=True)]  # fmt: skip
    real = batches[0].attention_mask.bool()
    torch.testing.assert_close(outputs[0][real], outputs[1][real])


def test_a_text_with_a_token_without_an_embedding_is_refused():
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["snowman"])
    base = base_of("llama", tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"embeddings of 260 tokens.*id 260 \('snowman'\)"):
        tokenize(base, ["a snowman"])


def save(folder, net):
    net.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "compressed-tensors", "fp8"])
def test_a_quantised_base_is_refused_with_the_remedy(tmp_path, method):
    save(tmp_path, network("llama", "causal"))
    values = json.loads((tmp_path / "config.json").read_text())
    values["quantization_config"] = {"quant_method": method, "bits": 4, "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=rf"model.name .* quantised \({method}\).*GGUF"):
        load_base(ModelConfig(name=str(tmp_path), task="causal", device="cpu"))


@pytest.mark.parametrize("method", ["LoraConfig", "IA3Config", "PrefixTuningConfig"])
def test_an_adapter_is_no_base(tmp_path, method):
    import peft

    values = dict(target_modules=["c_attn"], fan_in_fan_out=True) if "Pre" not in method else {}
    if method == "IA3Config":
        values["feedforward_modules"] = []
    if method == "PrefixTuningConfig":
        values = dict(num_virtual_tokens=2, task_type="CAUSAL_LM")
    base = save(tmp_path / "base", network("gpt2", "causal"))
    config = getattr(peft, method)(**values)
    loaded = hf.AutoModelForCausalLM.from_pretrained(base)
    peft.get_peft_model(loaded, config).save_pretrained(tmp_path / "adapter")
    byte_tokenizer().save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="is a PEFT adapter .*merge it"):
        load_base(ModelConfig(name=str(tmp_path / "adapter"), task="causal", device="cpu"))


def test_a_checkpoint_without_weights_that_the_task_needs_is_refused(tmp_path):
    save(tmp_path, network("gpt_neox"))  # without a language-model head of its own
    config = ModelConfig(name=str(tmp_path), device="cpu")
    assert len(load_base(config).specs) == 8
    with pytest.raises(ValueError, match="lacks weights that task 'causal' needs .*lm_head.weight"):
        load_base(ModelConfig(name=str(tmp_path), task="causal", device="cpu"))


def test_a_missing_pooler_does_not_matter(tmp_path):
    save(tmp_path, hf.BertForMaskedLM(hf.BertConfig(**SHAPE)))
    assert len(load_base(ModelConfig(name=str(tmp_path), device="cpu")).specs) == 12


def test_a_folder_that_is_no_model_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "no such type"}')
    with pytest.raises(ValueError, match="model.name .*could not be read as a model"):
        load_base(ModelConfig(name=str(tmp_path), device="cpu"))


def test_an_evaluation_with_nothing_to_predict_is_refused_and_one_text_weighs_nothing():
    base = base_of("llama", "causal")
    none = Adapter.zero(base.specs)
    one, text = Examples([[5]], [0]), Examples([[5, 6, 7]], [0])
    both, alone = (evaluate(base, None, none, own) for own in (join([one, text]), text))
    assert (both.accuracy, both.count) == (alone.accuracy, alone.count)
    assert both.loss == pytest.approx(alone.loss)
    with pytest.raises(ValueError, match="at least one example"):
        evaluate(base, None, none, one)


def test_a_device_with_nothing_to_predict_changes_nothing_for_the_others():
    base = base_of("llama", "causal")
    none, one, text = Adapter.zero(base.specs), Examples([[5]], [0]), Examples([[5, 6, 7]], [0])
    loras = MultiLora(base, None, [none, none]), MultiLora(base, None, [none])
    loss, _ = loras[0].evaluate(loras[0].microbatches([one, text]))
    alone, _ = loras[1].evaluate(loras[1].microbatches([text]))
    assert float(loss[0]) == 0.0
    torch.testing.assert_close(loss[1:], alone)
