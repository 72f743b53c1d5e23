"""What a backward pass needs of a forward pass, in bytes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def saved_bytes(network: nn.Module, run: Callable[[], None]) -> int:
    """Bytes that autograd keeps of what ``run`` computes, a network's own weights aside."""
    known = {t.untyped_storage().data_ptr() for t in network.parameters()}
    # Storages, so that none is freed and met again while it is counted; not tensors, as a node
    # that keeps its own output would never be freed.
    kept: dict[int, torch.UntypedStorage] = {}
    nothing = torch.empty(0)

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return nothing

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        run()
    return sum(storage.nbytes() for storage in kept.values())
