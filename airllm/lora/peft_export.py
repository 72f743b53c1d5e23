"""An adapter as a standard PEFT folder, which ``PeftModel.from_pretrained`` loads."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from airllm.lora.adapter import Adapter
from airllm.models.base import BaseModel
from airllm.models.head import Head
from airllm.models.sources import MINILM_ID


def save_peft(
    adapter: Adapter,
    base: BaseModel,
    folder: Path | str,
    *,
    head: Head | None = None,
    label_names: Sequence[str] = (),
) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``, for the bare backbone.

    ``rank_pattern`` holds each projection's rank and ``alpha_pattern`` the same number, so that
    PEFT's scaling alpha / r is 1: ours is folded into the factors. Projections of rank 0 are left
    out of the targets, because PEFT takes no rank 0; if all are, one of them gets a single zero
    component. A classification head, with its update where the adapter has one, goes beside it as
    ``head.safetensors``, whose metadata hold what a prediction needs: the labels as JSON, the
    pooling, the tokens a text is cut to.
    """
    from peft import LoraConfig

    folder = Path(folder)
    pairs, trained = {}, None
    for spec, down, up in zip(base.specs, adapter.down, adapter.up, strict=True):
        if spec.kind == "head":
            trained = up @ down  # [classes, features + 1]
        elif len(down):
            pairs[spec.name] = (down, up)
    if not pairs:
        spec = base.specs[0]
        pairs[spec.name] = (torch.zeros(1, spec.in_features), torch.zeros(spec.out_features, 1))
    ranks = {f"^{re.escape(name)}$": len(down) for name, (down, _) in pairs.items()}
    config = LoraConfig(
        r=1,
        lora_alpha=1,
        lora_dropout=0.0,
        target_modules=list(pairs),
        rank_pattern=ranks,
        alpha_pattern=dict(ranks),
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in base.modules),
        inference_mode=True,
        base_model_name_or_path=MINILM_ID if base.config.name == "minilm" else base.config.name,
    )
    folder.mkdir(parents=True, exist_ok=True)
    kind = type(base.network)
    # What AutoPeftModel makes the base model by.
    mapping = {"base_model_class": kind.__name__, "parent_library": kind.__module__}
    config.save_pretrained(str(folder), auto_mapping_dict=mapping)
    tensors = {}
    for name, (down, up) in pairs.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = down.contiguous().clone()
        tensors[f"base_model.model.{name}.lora_B.weight"] = up.contiguous().clone()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    if head is not None:
        weight, bias = head.weight.cpu(), head.bias.cpu()
        if trained is not None:
            weight, bias = weight + trained[:, :-1], bias + trained[:, -1]
        save_file(
            {"weight": weight.contiguous(), "bias": bias.contiguous()},
            folder / "head.safetensors",
            metadata={
                "format": "pt",
                "labels": json.dumps(list(label_names)),
                "pooling": base.config.pooling,
                "max_length": str(base.config.max_length),
            },
        )
