"""What there is on this machine to run with, and what to do about what there is not."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec

from experiments.assembly.threads import num_cores, num_threads

PACKAGES = (
    "airllm-sim", "torch", "peft", "transformers", "diffusers", "flwr", "simpy", "numpy",
    "matplotlib",
)  # fmt: skip


def describe() -> Iterator[tuple[str, str]]:
    """(what, state and remedy) for versions, device, models and data.

    Never raises for something that is absent or broken: that is what it is asked about.
    """
    yield "python", platform.python_version()
    for package in PACKAGES:
        yield package, _version(package)
    for part in (_device, _models, _data):
        try:
            yield from part()
        except ImportError as error:
            yield part.__name__.strip("_"), f"cannot be told: {error}; run `make setup`"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed; run `make setup`"


def _device() -> Iterator[tuple[str, str]]:
    import torch

    from airllm.models.device import resolve_device, resolve_precision

    device = resolve_device("auto")
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    cores = f"{num_cores()} usable CPU cores, threads in a run: {num_threads(0)}"
    yield "device", f"{device.type} ({name}), {cores}"
    precision = resolve_precision("auto", device)
    speed = "bf16 is fast here" if precision == "bf16" else "bf16 is not fast here"
    yield "precision", f"{precision}: {speed} (model.precision = 'auto')"


def _models() -> Iterator[tuple[str, str]]:
    from airllm.models.sources import MINILM_REMEDY, minilm_source

    try:
        source = minilm_source()
    except ValueError as error:  # found, and not usable
        yield "model minilm", f"not usable: {error}"
    else:
        yield "model minilm", f"here: {source}" if source else f"not here; {MINILM_REMEDY}"
    cached = _cached("model")
    yield "models in the cache", ", ".join(cached) if cached else "none"
    yield "model <hugging face id>", _hub("`hf download <id>`, or name a local folder")
    yield "model tiny:*", "here (random weights, for tests): bert, opt, gpt2, llama"


def _data() -> Iterator[tuple[str, str]]:
    from airllm.data.datasets import DataConfig

    packages = DataConfig().packages
    absent = [p for p in packages if _version(p).startswith("not installed")]
    yield (
        "data docstrings",
        f"lacks {', '.join(absent)}; pip install these, or take them out of data.packages"
        if absent
        else f"here, read from {len(packages)} installed packages",
    )
    cached = _cached("dataset")
    yield "data sets in the cache", ", ".join(cached) if cached else "none"
    yield (
        "data sst2, <hugging face id>",
        _hub("or name a local csv, tsv, jsonl or parquet file as data.source")
        if find_spec("datasets") is not None
        else "needs `pip install 'airllm-sim[hub]'`, or a local file as data.source",
    )


def _cached(kind: str) -> list[str]:
    """Ids of the models or data sets in the Hugging Face cache."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        return sorted(repo.repo_id for repo in scan_cache_dir().repos if repo.repo_type == kind)
    except (CacheNotFound, OSError, ValueError):
        return []


def _hub(remedy: str) -> str:
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return f"hub switched off (HF_HUB_OFFLINE), only what is in the cache; {remedy}"
    try:
        HfApi().model_info("gpt2", timeout=5)
    except Exception:
        return f"hub out of reach, only what is in the cache; {remedy}"
    return "hub within reach"
