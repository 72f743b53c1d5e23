"""What there is on this machine to run with."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec

PACKAGES = (
    "airllm-sim", "torch", "peft", "transformers", "diffusers", "flwr", "simpy", "numpy",
    "matplotlib",
)  # fmt: skip


def describe() -> Iterator[tuple[str, str]]:
    """(what, state and remedy) for versions, device, models and data."""
    yield "python", platform.python_version()
    for package in PACKAGES:
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            yield package, "not installed; run `make setup`"
    import torch

    from airllm.models import MINILM_REMEDY, minilm_source, resolve_device, resolve_precision

    device = resolve_device("auto")
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "cpu"
    yield "device", f"{device.type} ({name}), {len(os.sched_getaffinity(0))} CPU cores"
    yield "precision", f"{resolve_precision('auto', device)} (model.precision = 'auto')"
    source = minilm_source()
    yield "model minilm", f"here: {source}" if source else f"not here; {MINILM_REMEDY}"
    yield "model <hugging face id>", _hub("`hf download <id>`, or name a local folder")
    yield "model tiny:*", "here (random weights, for tests): bert, opt, gpt2, llama"
    yield "data docstrings", "here, read from the installed packages"
    has_datasets = find_spec("datasets") is not None
    yield (
        "data sst2, <hugging face id>",
        _hub("a local csv, tsv, jsonl or parquet file")
        if has_datasets
        else "needs `pip install 'airllm-sim[hub]'`",
    )


def _hub(remedy: str) -> str:
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return f"hub switched off (HF_HUB_OFFLINE); use the local cache, {remedy}"
    try:
        HfApi().model_info("gpt2", timeout=5)
    except Exception:
        return f"hub out of reach; use the local cache, {remedy}"
    return "hub within reach"
