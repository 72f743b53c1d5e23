"""The frozen base model: a transformer, its tokenizer and its projections."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import pydantic.dataclasses
import torch
from pydantic import Field
from torch import Tensor, nn

from airllm.bounds import NUMPY, STRICT, Several
from airllm.models.check import (
    num_embeddings,
    token_output,
    try_network,
)
from airllm.models.device import resolve_device, resolve_precision
from airllm.models.projections import HeadLayer, ProjectionSpec, find_projections

Precision = Literal["auto", "fp32", "bf16"]


@pydantic.dataclasses.dataclass(frozen=True, slots=True, config=STRICT)
class ModelConfig:
    """Base model: its origin, task and arithmetic."""

    name: Annotated[str, Field(min_length=1)] = "minilm"
    """'minilm', a Hugging Face id, a local folder, a GGUF file (read to full precision), or
    tiny:bert|opt|gpt2|llama (random weights)"""
    task: Literal["classify", "causal"] = "classify"
    """'classify' (a label for each text) or 'causal' (next-token loss and perplexity)"""
    pooling: Literal["mean", "cls", "last"] = "mean"
    """token features that the classification head reads: 'mean', 'cls' (first) or 'last'"""
    max_length: Annotated[int, Field(ge=2), NUMPY] = 32
    """tokens a text is cut to"""
    targets: Several[str] = ()
    """endings of the projections that take LoRA, such as 'query'; empty: every linear projection
    of every transformer block"""
    precision: Precision = "auto"
    """'fp32', 'bf16', or 'auto': bf16 where the hardware multiplies it fast"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """'cpu', 'cuda', or 'auto': CUDA where there is one"""


class BaseModel:
    """One frozen transformer shared by every adapter, its tokenizer and its projections.

    For ``classify`` the head is a linear layer on pooled features, held by the caller; for
    ``causal`` it is the model's own language-model head, frozen with it. With ``num_classes`` the
    head is the last projection, so that updates of it have ranks and travel like all others.
    """

    def __init__(
        self, config: ModelConfig, network: nn.Module, tokenizer: Any, *, num_classes: int = 0
    ) -> None:
        self.config = config
        self.device = resolve_device(config.device)
        self.precision = resolve_precision(config.precision, self.device)
        self.tokenizer = tokenizer
        tokenizer.padding_side = "right"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        self.vocab_size = len(tokenizer)
        self.num_embeddings = num_embeddings(network, self.vocab_size)
        # A pad token that was added to the tokenizer alone has no row: any other is masked as well.
        pad_id = int(tokenizer.pad_token_id or 0)
        self.pad_id = pad_id if pad_id < self.num_embeddings else 0
        # Full precision is torch's default: fp32 for a user, float64 where a test compares two
        # orders of the same sums.
        network = network.to("cpu", torch.get_default_dtype()).eval().requires_grad_(False)
        self.specs, self.modules = find_projections(network, config.targets, name=config.name)
        trial = try_network(
            config.name, network, self.specs, self.modules, task=config.task,
            vocab_size=min(self.vocab_size, self.num_embeddings), max_length=config.max_length,
        )  # fmt: skip
        self.num_features, self.num_calls = trial.num_features, trial.num_calls
        self.network = network.to(self.device)
        if self.precision == "bf16":
            # Weights that only feed matrix products are stored as they are multiplied;
            # embeddings and normalisation stay in fp32.
            for module in self.network.modules():
                if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
                    module.to(torch.bfloat16)
        self._head_layer: HeadLayer | None = None
        if num_classes:
            self._head_layer = HeadLayer()
            depth = max(spec.depth for spec in self.specs)
            head = ProjectionSpec("head", self.num_features + 1, num_classes, depth, "head")
            self.specs, self.modules = (*self.specs, head), (*self.modules, self._head_layer)
            self.num_calls = (*self.num_calls, 1)
        self.row_bytes: dict[tuple[int, int], int] = {}
        """what a backward pass needs of a row, by width and classes, as far as it is measured"""

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Autocast to bf16 where that is the precision; nothing otherwise."""
        with torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"
        ):
            yield

    def put(self, tensor: Tensor) -> Tensor:
        """A tensor of the host on the model's device; on CUDA the host does not wait for it."""
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Last hidden state (classify) or logits over the vocabulary (causal), in full precision.

        Shapes: both inputs [batch, tokens]; result [batch, tokens, features or vocabulary].
        """
        with self.arithmetic():
            out = token_output(self.network, self.config.task, input_ids, attention_mask)
        return out.to(torch.get_default_dtype())

    def pooled(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Features [batch, features] that a classification head reads."""
        hidden = self.hidden(input_ids, attention_mask)
        if self.config.pooling == "cls":
            return hidden[:, 0]
        mask = attention_mask.to(hidden.dtype)
        if self.config.pooling == "last":
            last = attention_mask.sum(dim=1).long() - 1
            return hidden[torch.arange(len(hidden), device=hidden.device), last]
        return (hidden * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)

    def logits(self, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Logits [batch, classes] of a head on features [batch, features], with its update."""
        if self._head_layer is None:
            return nn.functional.linear(features, weight, bias)
        ones = features.new_ones(len(features), 1)
        inputs = torch.cat([features, ones], dim=1)[:, None]  # [batch, 1, features + 1]
        return self._head_layer(inputs, torch.cat([weight, bias[:, None]], dim=1))[:, 0]
