"""A base model from a GGUF file: written here, tiny, with the layout of llama.cpp's."""

import gguf
import numpy as np
import pytest
import torch

from airllm.models.base import ModelConfig
from airllm.models.sources import load_base
from airllm.models.tiny import byte_tokenizer

WIDTH, HEADS, KV_HEADS = 32, 4, 2


@pytest.fixture
def write(tmp_path):
    def write(quantisation=gguf.GGMLQuantizationType.F32):
        path = tmp_path / "tiny.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_block_count(2)
        writer.add_context_length(64)
        writer.add_embedding_length(WIDTH)
        writer.add_feed_forward_length(2 * WIDTH)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(KV_HEADS)
        writer.add_layer_norm_rms_eps(1e-5)
        _add_tokenizer(writer)
        matrices = dict(_matrices(writer))
        for name, matrix in matrices.items():
            data = gguf.quantize(matrix, quantisation)
            writer.add_tensor(name, data, raw_dtype=quantisation)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path, matrices

    return write


def _add_tokenizer(writer):
    vocabulary = byte_tokenizer().get_vocab()
    tokens = [*sorted(vocabulary, key=vocabulary.get), "he"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 4 + [gguf.TokenType.NORMAL] * len(tokens[4:]))
    writer.add_token_merges(["h e"])
    for add, token in (
        (writer.add_pad_token_id, 0), (writer.add_bos_token_id, 1),
        (writer.add_eos_token_id, 2), (writer.add_unk_token_id, 3),
    ):  # fmt: skip
        add(token)


def _matrices(writer):
    """(name, values) of every matrix; the vectors are written at once."""
    rng = np.random.default_rng(0)

    def matrix(rows, columns):
        return rng.normal(size=(rows, columns), scale=columns**-0.5).astype(np.float32)

    kv = WIDTH * KV_HEADS // HEADS
    shapes = {
        "attn_q": (WIDTH, WIDTH), "attn_k": (kv, WIDTH), "attn_v": (kv, WIDTH),
        "attn_output": (WIDTH, WIDTH), "ffn_gate": (2 * WIDTH, WIDTH),
        "ffn_up": (2 * WIDTH, WIDTH), "ffn_down": (WIDTH, 2 * WIDTH),
    }  # fmt: skip
    vocabulary = len(byte_tokenizer()) + 1
    yield "token_embd.weight", matrix(vocabulary, WIDTH)
    yield "output.weight", matrix(vocabulary, WIDTH)
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    for block in range(2):
        for name, shape in shapes.items():
            yield f"blk.{block}.{name}.weight", matrix(*shape)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{block}.{name}.weight", np.ones(WIDTH, np.float32))


@pytest.mark.parametrize("task", ["causal", "classify"])
def test_weights_and_tokenizer_are_those_of_the_file(task, write):
    path, matrices = write()
    config = ModelConfig(name=str(path), task=task, device="cpu", precision="fp32")
    base = load_base(config)
    assert len(base.specs) == 14
    t, merged = base.tokenizer("the").input_ids
    assert base.tokenizer.convert_ids_to_tokens([t, merged]) == ["t", "he"]
    assert base.network.get_input_embeddings().num_embeddings == merged + 1
    for spec, module in zip(base.specs, base.modules, strict=True):
        if spec.kind == "mlp.down_proj":
            written = matrices[f"blk.{spec.depth}.ffn_down.weight"]
            torch.testing.assert_close(module.weight, torch.from_numpy(written), rtol=0, atol=0)


def test_what_is_quantised_is_read_to_full_precision(write):
    path, matrices = write(gguf.GGMLQuantizationType.Q8_0)
    base = load_base(ModelConfig(name=str(path), task="causal", device="cpu", precision="fp32"))
    weight = base.modules[[s.kind for s in base.specs].index("mlp.up_proj")].weight
    written = torch.from_numpy(matrices["blk.0.ffn_up.weight"])
    assert weight.dtype == torch.float32
    assert 0 < (weight - written).abs().max() < 0.01 * written.abs().max()


def test_a_file_that_is_cut_short_is_named(write):
    path, _ = write()
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"tiny.gguf' could not be read .* a whole GGUF file"):
        load_base(ModelConfig(name=str(path), task="causal", device="cpu"))


def test_no_file_and_no_reader_are_named(tmp_path, write, monkeypatch):
    with pytest.raises(ValueError, match="no.gguf' is no file; give the path of a GGUF file"):
        load_base(ModelConfig(name=str(tmp_path / "no.gguf")))
    path, _ = write()
    monkeypatch.setattr("airllm.models.sources.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'airllm-sim\[gguf\]'"):
        load_base(ModelConfig(name=str(path)))
