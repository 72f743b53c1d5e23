"""Tiny random transformers with a byte-level tokenizer, built without any download.

They have the module layout of the real families and nothing to say: for tests and first tries.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

TINY_FAMILIES = ("bert", "opt", "gpt2", "llama")
_SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")


def byte_tokenizer() -> Any:
    """One token for each byte, after four special ones."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate((*_SPECIAL, *symbols))}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[], unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        bos_token="[CLS]",
        eos_token="[SEP]",
    )


def build_tiny(family: str, task: str, *, seed: int) -> tuple[nn.Module, Any]:
    """Two blocks, 32 features, seeded weights; the caller's random state is left alone."""
    import transformers as hf

    tokenizer = byte_tokenizer()
    vocab_size, width = len(tokenizer), 32
    config: Any
    if family == "bert":
        config = hf.BertConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=2 * width,
            is_decoder=task == "causal",
            pad_token_id=0,
        )
    elif family == "opt":
        config = hf.OPTConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            word_embed_proj_dim=width,
            num_hidden_layers=2,
            num_attention_heads=4,
            ffn_dim=2 * width,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    elif family == "gpt2":
        config = hf.GPT2Config(
            vocab_size=vocab_size,
            n_embd=width,
            n_layer=2,
            n_head=4,
            bos_token_id=1,
            eos_token_id=2,
        )
    else:
        config = hf.LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=2 * width,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    loader = hf.AutoModelForCausalLM if task == "causal" else hf.AutoModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = loader.from_config(config)
        if task == "classify":
            # The families' own initialisation (std 0.02) leaves features of a random model
            # nearly equal; wider weights give tests something to separate.
            for module in network.modules():
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=width**-0.5)
    return network, tokenizer
