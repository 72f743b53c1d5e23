"""What to compute on, and how precisely."""

from __future__ import annotations

from pathlib import Path

import torch


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
