"""Many adapters evaluated on the same texts; what comes before their first difference runs once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from airllm.lora.adapter import Adapter
from airllm.lora.evaluation import Metrics
from airllm.lora.multi_lora import MultiLora
from airllm.models.base import BaseModel
from airllm.models.batches import Examples
from airllm.models.head import Head


@torch.no_grad()
def evaluate_many(
    base: BaseModel, head: Head | None, adapters: Sequence[Adapter], examples: Examples
) -> list[Metrics]:
    """`airllm.lora.evaluation.evaluate` of each adapter, to the bit; the base is left bare.

    Adapters that agree in their first blocks share what these give: in the order of a walk through
    the tree of their prefixes, each pass begins where it leaves the one before. A pass is still one
    adapter's, so no number depends on which others there are.
    """
    count = examples.num_terms(is_causal=base.config.task == "causal")
    if not count:
        raise ValueError("evaluation needs at least one example")
    depths = sorted({spec.depth for spec in base.specs})
    keys = [_prefix_key(base, adapter, depths) for adapter in adapters]
    order = sorted(range(len(adapters)), key=lambda i: keys[i])
    loras = [MultiLora(base, head, [adapter]) for adapter in adapters]
    batches = loras[0].microbatches([examples]) if loras else []
    total, right = [0.0] * len(adapters), [0] * len(adapters)
    with ExitStack() as stack:
        blocks = [_Block(block) for block in _blocks(base, depths)]
        for block in blocks:
            stack.callback(block.close)
        for batch in batches:
            known: tuple[bytes, ...] = ()
            for i in order:
                shared = 0
                while shared < len(known) and known[shared] == keys[i][shared]:
                    shared += 1
                for depth, block in enumerate(blocks):
                    block.is_known = depth < shared
                found = loras[i].evaluate([batch])
                loss, correct = (each.tolist() for each in found)
                total[i] += loss[0]
                right[i] += correct[0]
                known = keys[i]
    return [Metrics(t, r / count, count) for t, r in zip(total, right, strict=True)]


class _Block:
    """A transformer block that can give once more what it gave last."""

    def __init__(self, module: Any) -> None:
        self.is_known = False
        self._module, self._last = module, None
        compute: Callable[..., Any] = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not self.is_known:
                self._last = compute(*args, **kwargs)
            return self._last

        module.forward = forward

    def close(self) -> None:
        """Be as before."""
        del self._module.forward


def _blocks(base: BaseModel, depths: Sequence[int]) -> list[Any]:
    """The modules that hold the projections of each depth."""
    found = []
    for depth in depths:
        name = next(spec.name for spec in base.specs if spec.depth == depth)
        parts = name.split(".")
        end = next(i for i, part in enumerate(parts) if part.isdigit())
        found.append(base.network.get_submodule(".".join(parts[: end + 1])))
    return found


def _prefix_key(base: BaseModel, adapter: Adapter, depths: Sequence[int]) -> tuple[bytes, ...]:
    """[blocks] what tells an adapter's factors in each block from others."""
    digests = {depth: hashlib.sha256() for depth in depths}
    for spec, down, up in zip(base.specs, adapter.down, adapter.up, strict=True):
        digest = digests[spec.depth]
        digest.update(f"{len(down)};".encode())
        for factor in (down, up):
            digest.update(factor.contiguous().numpy().data)
    return tuple(digests[depth].digest() for depth in depths)
