"""One or many devices' adapters, of unequal ranks, on one frozen base, in the same passes.

In a pass (`airllm.models.microbatches`) a device's tokens are neighbours, and the runs of
`airllm.lora.flat_factors` are products on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from airllm.lora.adapter import Adapter
from airllm.lora.flat_factors import FlatFactors, consecutive
from airllm.lora.multi_lora_linear import Factors, MultiLoraLinear, Segment
from airllm.models.base import BaseModel
from airllm.models.batches import Examples
from airllm.models.head import Head
from airllm.models.losses import losses
from airllm.models.memory import saved_bytes
from airllm.models.microbatches import Microbatch, microbatches, whole
from airllm.models.projections import HeadLayer

_CPU_MEMORY = 1 << 30  # bytes: larger passes are no faster there


def _cuda_memory(device: torch.device) -> int:
    """A quarter of the card's bytes: always the same, as the order of sums depends on it."""
    return int(torch.cuda.get_device_properties(device).total_memory) // 4


class MultiLora:
    """What each device has loaded on a base: a frozen adapter, one that is trained, or both.

    The base is bare but within `applied_to`; its weights exist once, for however many devices.
    """

    def __init__(
        self,
        base: BaseModel,
        head: Head | None,
        frozen: Sequence[Adapter] = (),
        trained: Sequence[Adapter] = (),
        *,
        scale: float = 1.0,
        trains_down: bool = True,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
        watch: Callable[[int, Tensor, Tensor], None] | None = None,
        memory_bytes: int | None = None,
    ) -> None:
        """``frozen`` and ``trained`` have an adapter for each device, or none for any.

        What is trained are down factors and up factors divided by ``scale``: lora_alpha / r.
        ``dropout`` is the probability that an input of an update is dropped, drawn from
        ``generator``. ``watch`` is shown, in a backward pass, each projection's number, its input
        [tokens, in] and the gradient of its output [tokens, out].

        ``memory_bytes`` bounds what a pass keeps for its backward pass; one row is the least.
        None: 1 GiB on a CPU, on CUDA a quarter of the card's memory.
        """
        self.num_devices = max(len(frozen), len(trained))
        if {len(frozen), len(trained)} - {0} != {self.num_devices}:
            raise ValueError(
                f"frozen and trained must have an adapter for each device, or one of them none, "
                f"got {len(frozen)} and {len(trained)}"
            )
        if memory_bytes is None:
            memory_bytes = _cuda_memory(base.device) if base.device.type == "cuda" else _CPU_MEMORY
        if memory_bytes < 1:
            raise ValueError(f"memory_bytes must be >= 1, got {memory_bytes}")
        self.base, self.head, self.memory_bytes, self._watch = base, head, memory_bytes, watch
        self.dropout, self.generator = dropout, generator
        self._trained = FlatFactors(
            base, trained, scale=scale, is_trained=True, trains_down=trains_down
        )
        self._runs = [
            own + others
            for own, others in zip(self._trained.runs, FlatFactors(base, frozen).runs, strict=True)
        ]
        self._anchor = torch.zeros((), device=base.device, requires_grad=True)
        self._parts: dict[tuple[int, int, int], Factors] = {}

    @property
    def values(self) -> Tensor:
        """What is trained, for an optimiser, whose step follows upon `backward`."""
        return self._trained.values

    def factors(self, device: int = 0) -> Adapter:
        """What is trained on a device, as views of ``values``; up factors are divided by scale."""
        return self._trained.views(self.values.detach(), device)

    def gradients(self, device: int = 0) -> Adapter:
        """Of the last `backward`, by those `factors`, as views."""
        assert self.values.grad is not None
        return self._trained.views(self.values.grad, device)

    def adapters(self) -> list[Adapter]:
        """[devices] what is trained, as it is now, on the CPU, the scale folded in."""
        return self._trained.adapters()

    def backward(self, batches: Sequence[Microbatch]) -> Tensor:
        """Mean losses [devices]; their gradients are put into ``values.grad``.

        The losses are on the model's device: to read them is to wait for it, which nothing else
        here does.
        """
        self._trained.zero_grad()
        return self._run(batches, is_training=True)[0]

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Microbatch]) -> tuple[Tensor, Tensor]:
        """Mean losses [devices], and right answers [devices]."""
        return self._run(batches, is_training=False)

    def microbatches(self, examples: Sequence[Examples]) -> list[Microbatch]:
        """How examples of each device go through the model in this memory."""
        if len(examples) != self.num_devices:
            raise ValueError(
                f"examples must be those of {self.num_devices} devices, got {len(examples)}"
            )
        return microbatches(
            self.base, examples,
            rows_of=lambda width: self.memory_bytes // row_bytes(self.base, self.head, width),
        )  # fmt: skip

    @contextmanager
    def applied_to(self, batch: Microbatch) -> Iterator[None]:
        """Inside it the base's projections carry the updates of the devices of this batch."""
        self._trained.begin_pass()
        ends = np.cumsum([0, *batch.num_rows])
        try:
            for p, module in enumerate(self.base.modules):
                # The head sees one vector of a text, all other projections its tokens.
                width = 1 if isinstance(module, HeadLayer) else batch.input_ids.shape[1]
                own = (ends * width).tolist()
                segments = [s for run in self._runs[p] for s in self._segments(run, own)]
                setattr(module, "forward", partial(self._project, p, own[-1], segments))  # noqa: B010
            yield
        finally:
            for module in self.base.modules:
                vars(module).pop("forward", None)

    def _run(self, batches: Sequence[Microbatch], *, is_training: bool) -> tuple[Tensor, Tensor]:
        device = self.base.device
        loss = torch.zeros(self.num_devices, dtype=torch.float64, device=device)
        right = torch.zeros(self.num_devices, dtype=torch.long, device=device)
        for batch in batches:
            with self.applied_to(batch):
                each, correct = losses(self.base, self.head, batch)
            each = each * batch.weight
            if is_training:
                each.sum().backward()
            # Each device's are summed apart, so that no sum depends on who else there is.
            parts = each.detach().double().split(batch.num_terms)
            loss += torch.stack([part.sum() for part in parts])
            right += torch.stack([part.sum() for part in correct.split(batch.num_terms)])
        return loss, right

    def _project(
        self, projection: int, num_tokens: int, segments: list[Segment], x: Tensor,
        head: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """What a projection computes: its own product and the updates."""
        module: Any = self.base.modules[projection]
        if head is not None:
            weight, bias = head.t(), None
        else:
            # Conv1D keeps its weight as [in, out].
            weight = module.weight.t() if isinstance(module, nn.Linear) else module.weight
            bias = module.bias
        # `airllm.models.check` takes no model whose projections see anything else.
        assert x.numel() == num_tokens * x.shape[-1]
        dropped = None
        if self.dropout:
            keep = 1.0 - self.dropout
            mask = torch.rand(x.shape, generator=self.generator, device=x.device) < keep
            dropped = x * mask / keep
        watch = None if self._watch is None else partial(self._watch, projection)
        # Below the first projection that is trained or watched nothing needs a backward pass.
        is_needed = watch is not None or any(f.up_grad is not None for _, _, f in segments)
        anchor = self._anchor if is_needed else None
        result: Tensor = MultiLoraLinear.apply(x, dropped, anchor, weight, bias, segments, watch)
        return result

    def _segments(self, run: Factors, ends: Sequence[int]) -> list[Segment]:
        """A run's devices, in stretches of equally many tokens, by where devices' tokens end."""
        found, own = [], ends[run.first : run.first + run.count + 1]
        for first, count, length in consecutive([b - a for a, b in pairwise(own)]):
            if length:
                key = (id(run), first, count)
                if key not in self._parts:
                    self._parts[key] = run.part(first, first + count)
                found.append((own[first], own[first + count], self._parts[key]))
        return found


def row_bytes(base: BaseModel, head: Head | None, width: int) -> int:
    """What autograd keeps of one row of a width, updates aside; measured once for each base."""
    key = (width, 0 if head is None else len(head.bias))
    if key not in base.row_bytes:
        one = whole(base, Examples([[base.pad_id] * width], [0]))
        # That what is watched needs a backward pass from the first projection on.
        bare = MultiLora(base, head, [Adapter.zero(base.specs)], watch=lambda *_: None)

        def run() -> None:
            # Also where an evaluation asks first, which records nothing by itself.
            with torch.enable_grad(), bare.applied_to(one):
                losses(base, head, one)

        base.row_bytes[key] = saved_bytes(base.network, run)
    return base.row_bytes[key]
