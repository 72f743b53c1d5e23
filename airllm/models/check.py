"""Whether a network can be fine-tuned here: tried out on a few tokens, whatever its family."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from airllm.models.families import refusal
from airllm.models.projections import ProjectionSpec

_TOKENS, _SHORT = 5, 3  # of the texts that it is tried on; other than their number, 2
_TOLERANCE = 1e-3  # relative to the largest output: far above fp32's noise, below any real effect


@dataclass(frozen=True, slots=True)
class Shapes:
    """What running a network once has shown."""

    num_features: int
    """of a token in the output"""
    num_calls: tuple[int, ...]
    """[projections] times that a pass goes through each; more than once where layers are shared"""


def token_output(network: Any, task: str, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Last hidden state (classify) or logits (causal) of inputs [batch, tokens]."""
    out = network(input_ids=input_ids, attention_mask=attention_mask)
    result: Tensor = out.logits if task == "causal" else out.last_hidden_state
    return result


def num_embeddings(network: Any, default: int) -> int:
    """Rows of the token embedding; ``default`` where there is no such table."""
    try:
        return int(network.get_input_embeddings().num_embeddings)
    except (AttributeError, NotImplementedError):
        return default


@torch.no_grad()
def try_network(
    name: str,
    network: Any,
    specs: Sequence[ProjectionSpec],
    modules: Sequence[nn.Module],
    *,
    task: str,
    vocab_size: int,
    max_length: int,
) -> Shapes:
    """Run a network in fp32 on the CPU, where an index out of range is no broken device.

    Checked are: an output for each token; that padding (and with task causal what follows) changes
    nothing; that each projection sees every token of the texts, in their order; ``max_length``.
    Raises ValueError that says what fails.
    """
    if getattr(getattr(network, "config", None), "is_encoder_decoder", False):
        raise refusal(name, "it is an encoder-decoder, which needs a second text to decode")

    def run(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        try:
            return token_output(network, task, input_ids, attention_mask)
        except Exception as error:  # networks raise what they like
            reason = f"it takes no short text with its mask ({first_line(error)})"
            raise refusal(name, reason) from error

    ids = _ids(2, _TOKENS, vocab_size)
    ones, mask = torch.ones_like(ids), torch.ones_like(ids)
    mask[0, _SHORT:] = 0
    seen: list[list[tuple[int, ...]]] = [[] for _ in modules]
    handles = [m.register_forward_hook(_recorder(s)) for m, s in zip(modules, seen, strict=True)]
    try:
        padded = run(ids, mask)
    finally:
        for handle in handles:
            handle.remove()
    if padded.shape[:2] != ids.shape or padded.dim() != 3:
        raise refusal(name, "it gives no output for each token")
    alone = run(ids[:1, :_SHORT], ones[:1, :_SHORT])
    if not torch.isfinite(alone).all():
        raise refusal(name, "its output is not finite")
    if not _is_same(alone, padded[:1, :_SHORT]):
        raise refusal(name, "padding changes its output")
    if task == "causal" and not _is_same(alone, run(ids, ones)[:1, :_SHORT]):
        raise refusal(
            name,
            "it sees the tokens that model.task 'causal' predicts, as encoders do (a BERT needs "
            "is_decoder in its config.json)",
        )
    allowed = (tuple(ids.shape), (ids.numel(),))
    if bad := [
        s.kind
        for s, shapes in zip(specs, seen, strict=True)
        if not shapes or any(shape not in allowed for shape in shapes)
    ]:
        good = sorted({s.kind for s in specs} - set(bad))
        remedy = f"set model.targets to others ({', '.join(good[:6])})" if good else ""
        raise refusal(
            name,
            f"its projections {', '.join(sorted(set(bad))[:6])} do not each see the tokens of the "
            f"texts (as in experts or relative positions)" + (f"; {remedy}" if remedy else ""),
        )
    _check_length(name, partial(token_output, network, task), network, vocab_size, max_length)
    return Shapes(int(padded.shape[-1]), tuple(map(len, seen)))


def _ids(rows: int, tokens: int, vocab_size: int) -> Tensor:
    """Token ids [rows, tokens], different ones from the middle of the vocabulary."""
    ids = (vocab_size // 2 + torch.arange(rows * tokens)) % vocab_size
    return ids.view(rows, tokens)


def _recorder(shapes: list[tuple[int, ...]]) -> Callable[..., None]:
    def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        shapes.append(tuple(args[0].shape[:-1]) if args else ())

    return record


def _is_same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=0.0, atol=_TOLERANCE * float(a.abs().max()))


def first_line(error: Exception) -> str:
    """An error's type and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def _check_length(
    name: str, run: Callable[..., Tensor], network: Any, vocab_size: int, max_length: int
) -> None:
    """The positions that a configuration states are not all usable in each family: RoBERTa's begin
    behind that of the padding. So the length is tried out; what is stated is a bound (a network
    with rotary positions computes on beyond it)."""

    def works(length: int) -> bool:
        ids = _ids(1, length, vocab_size)
        try:
            run(ids, torch.ones_like(ids))
        except (IndexError, RuntimeError, ValueError):
            return False
        return True

    stated = getattr(network.config, "max_position_embeddings", None) or -1
    limit = min(max_length, stated) if stated > 0 else max_length
    if limit > _TOKENS and not works(limit):
        low, high = _TOKENS, limit  # of which low works, high does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if works(middle) else (low, middle)
        limit = low
    if max_length > limit:
        raise ValueError(
            f"model.max_length {max_length} exceeds the {limit} positions of {name}; "
            f"set model.max_length = {limit} or less"
        )


@torch.no_grad()
def unset_weights(
    network: nn.Module, output: Callable[[], Tensor], missing: Iterable[str]
) -> list[str]:
    """Those of the ``missing`` weights, which a checkpoint lacks, that the output depends on.

    A pooler that nobody reads may be missing.
    """
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    found = []
    for key in sorted(missing):
        tensor = tensors.get(key)
        if tensor is None or not tensor.is_floating_point():
            continue
        kept = tensor.clone()
        tensor.fill_(torch.nan)
        try:
            if torch.isnan(output()).any():
                found.append(key)
        finally:
            tensor.copy_(kept)
        if len(found) == 3:
            break  # enough to say so
    return found
