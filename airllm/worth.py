"""What a device says its own update's components are worth, in the bytes of its request."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# A component's worth is the upper half of a float32 (bf16), which keeps its range.


def pack_worth(worth: Array) -> bytes:
    """Bytes of a table [projections, rank]."""
    words = np.ascontiguousarray(worth, dtype="<f4").view("<u4")
    return bytes((words >> 16).astype("<u2").tobytes())


def unpack_worth(data: bytes, num_projections: int) -> Array:
    """The inverse of `pack_worth`; raises ValueError for bytes that are no table of numbers."""
    if len(data) % (2 * num_projections):
        raise ValueError(f"{len(data)} bytes are no table with {num_projections} rows")
    words = np.frombuffer(data, "<u2").astype("<u4") << 16
    worth = words.view("<f4").astype(float).reshape(num_projections, -1)
    if not np.isfinite(worth).all():
        raise ValueError("a component's worth is not a number")
    return worth
