"""Many devices' adapters of unequal ranks trained on one frozen base, all in the same passes.

Factors of all devices lie in one flat buffer, their gradients in another, so that one fused AdamW
moves them all. In a pass (`airllm.lora.microbatches`) a device's tokens are neighbours; consecutive
devices of equal rank in a projection make a *run*, one batched product: nobody pays for another's
rank.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from airllm.lora.adapter import Adapter
from airllm.lora.microbatches import Pass, make_passes, row_losses
from airllm.lora.stacked_linear import Factors, FleetLinear, Segment
from airllm.models.base import BaseModel
from airllm.models.batches import Examples
from airllm.models.head import Head
from airllm.models.projections import HeadLayer

# On CUDA, ranks are padded with zero components, which stay zero, to a multiple of a tensor core's
# tile, so that runs are few; on a CPU one component more is time more.
_CUDA_TILE = 16
# Widths of passes: a CPU's time is its tokens, a GPU's the number of its kernels. There all texts
# of a step have one width, so that a device has as many tokens as the next one and runs stay whole.
_CPU_MULTIPLE, _CUDA_MULTIPLE = 8, 32
_CPU_MEMORY = 1 << 28  # bytes: larger passes are no faster there


@dataclass(frozen=True, slots=True)
class Member:
    """One device of a fleet."""

    adapter: Adapter
    """what is trained, as it starts; ranks may be unequal, 0 included"""
    learning_rate: float
    """of AdamW"""
    scale: float = 1.0
    """factor in front of the trained products, which ``adapter`` is without: lora_alpha / r"""
    frozen: Adapter | None = None
    """what is loaded besides and not trained"""


def _cuda_memory(device: torch.device) -> int:
    """A quarter of the card's bytes: always the same, as the order of sums depends on it."""
    return int(torch.cuda.get_device_properties(device).total_memory) // 4


class Fleet:
    """Trains its members' adapters together; each has its own loss, rate and optimiser state.

    A context manager: inside it the base's projections carry the updates.
    """

    def __init__(
        self,
        base: BaseModel,
        head: Head | None,
        members: Sequence[Member],
        *,
        weight_decay: float = 0.0,
        trains_down: bool = True,
        memory_bytes: int | None = None,
        multiple: int | None = None,
    ) -> None:
        """``memory_bytes`` bounds what a pass keeps for its backward pass; one row is the least.
        None: 256 MiB on a CPU, on CUDA a quarter of the card's memory.

        ``multiple`` is that to which widths are rounded up. Raises ValueError for no members.
        """
        if not members:
            raise ValueError("members must not be empty: a fleet has at least one device")
        is_cuda = base.device.type == "cuda"
        if memory_bytes is None:
            memory_bytes = _cuda_memory(base.device) if is_cuda else _CPU_MEMORY
        if memory_bytes < 1:
            raise ValueError(f"memory_bytes must be >= 1, got {memory_bytes}")
        self.base, self.head, self.members = base, head, list(members)
        self.memory_bytes = memory_bytes
        self.multiple = multiple or (_CUDA_MULTIPLE if is_cuda else _CPU_MULTIPLE)
        self._tile = _CUDA_TILE if is_cuda else 1
        self._trains_down = trains_down
        self._row_bytes: dict[int, int] = {}
        self._anchor = torch.zeros((), device=base.device, requires_grad=True)
        self._stack = ExitStack()
        self._segments: list[list[Segment]] = [[] for _ in base.specs]
        self._rows = [0] * len(base.specs)  # that a projection is to see in the present pass
        self._cut: dict[tuple[int, int, int], Factors] = {}
        self._host: dict[float, Tensor] = {}  # the values as they are now, once asked for
        self._lay_out()
        self._optimiser = torch.optim.AdamW(
            [{"params": [b], "lr": rate} for rate, b in self._values.items()],
            weight_decay=weight_decay,
            fused=True,
        )

    def __enter__(self) -> Fleet:
        for p, module in enumerate(self.base.modules):
            setattr(module, "forward", self._forward(p))  # noqa: B010
            self._stack.callback(delattr, module, "forward")
        return self

    def __exit__(self, *args: object) -> None:
        self._stack.close()

    def step(self, examples: Sequence[Examples]) -> Tensor:
        """One AdamW step of each member on examples of its own; mean losses [members] before it.

        The losses are on the model's device: to read them is to wait for it, which nothing else
        here does.
        """
        for buffer in self._values.values():
            assert buffer.grad is not None
            buffer.grad.zero_()
        found = self._run(examples, is_training=True)[0]
        self._optimiser.step()
        self._host = {}
        self._round_off()
        return found

    @torch.no_grad()
    def evaluate(self, examples: Sequence[Examples]) -> tuple[Tensor, Tensor]:
        """Mean losses [members] and right answers [members] on examples of their own."""
        return self._run(examples, is_training=False)

    def adapter(self, member: int) -> Adapter:
        """A member's trained adapter as it is now, on the CPU, without its scale."""
        if not self._host:
            self._host = {rate: values.detach().cpu() for rate, values in self._values.items()}
        ranks = self.members[member].adapter.ranks
        down, up = [], []
        for p, spec in enumerate(self.base.specs):
            d, u = torch.zeros(0, spec.in_features), torch.zeros(spec.out_features, 0)
            for first, count, rate, cuts in self._cuts[p]:
                if 0 <= member - first < count:
                    d, u = (
                        self._host[rate][cut].view(count, -1, features)[member - first, : ranks[p]]
                        for cut, features in zip(
                            cuts, (spec.in_features, spec.out_features), strict=True
                        )
                    )
                    d, u = d.clone(), u.T.clone()
            down.append(d)
            up.append(u)
        return Adapter(tuple(down), tuple(up))

    def passes(self, examples: Sequence[Examples]) -> list[Pass]:
        """How one step's examples go through the model."""
        if len(examples) != len(self.members):
            raise ValueError(
                f"examples must be those of {len(self.members)} members, got {len(examples)}"
            )
        return make_passes(
            self.base, examples, rows_of=self._rows_of, multiple=self.multiple,
            is_one_width=self.base.device.type == "cuda",
        )  # fmt: skip

    def row_bytes(self, width: int) -> int:
        """What autograd keeps of one row of a width, measured once on one."""
        if width not in self._row_bytes:
            self._row_bytes[width] = self._measure(width)
        return self._row_bytes[width]

    def _rows_of(self, width: int) -> int:
        return max(1, self.memory_bytes // self.row_bytes(width))

    def _measure(self, width: int) -> int:
        """Bytes that autograd keeps of one row of the member with the highest ranks."""
        most = int(np.argmax([m.adapter.ranks.sum() for m in self.members]))
        examples = [
            Examples([[self.base.pad_id] * width] * (i == most), [0] * (i == most))
            for i in range(len(self.members))
        ]
        (one,) = make_passes(self.base, examples, rows_of=lambda _: 1, multiple=width)
        known = {t.untyped_storage().data_ptr() for t in self.base.network.parameters()}
        # Storages, so that none is freed and met again while it is counted; not tensors, as a node
        # that keeps its own output would never be freed.
        kept: dict[int, torch.UntypedStorage] = {}
        nothing = torch.empty(0)

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                kept[storage.data_ptr()] = storage
            return nothing

        # Also where an evaluation asks first, which records nothing by itself.
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            self._place(one)
            row_losses(self.base, self.head, one)
        return max(1, sum(storage.nbytes() for storage in kept.values()))

    def _run(self, examples: Sequence[Examples], *, is_training: bool) -> tuple[Tensor, Tensor]:
        device = self.base.device
        counts = [len(own.ids) for own in examples]
        loss = torch.zeros(sum(counts), device=device)  # [examples]
        right = torch.zeros(sum(counts), device=device, dtype=torch.long)
        for batch in self.passes(examples):
            self._place(batch)
            each, correct = row_losses(self.base, self.head, batch)
            each = each * batch.weight
            if is_training:
                each.sum().backward()
            loss[batch.place], right[batch.place] = each.detach(), correct.long()
        # Each member's are summed apart, so that no sum depends on who else there is.
        return (
            torch.stack([part.double().sum() for part in loss.split(counts)]),
            torch.stack([part.sum() for part in right.split(counts)]),
        )

    def _place(self, batch: Pass) -> None:
        """Tell the projections whose tokens stand where."""
        ends = np.cumsum([0, *batch.counts])
        for p, runs in enumerate(self._loaded):
            # The head sees one vector of a text, all other projections its tokens.
            is_head = isinstance(self.base.modules[p], HeadLayer)
            at = (ends * (1 if is_head else batch.input_ids.shape[1])).tolist()
            self._segments[p] = [s for run in runs for s in self._parts(run, at)]
            self._rows[p] = at[-1]

    def _forward(self, projection: int) -> Callable[..., Tensor]:
        """What a projection computes inside the fleet: its own product and the updates."""
        module: Any = self.base.modules[projection]

        def forward(x: Tensor, head: Tensor | None = None) -> Tensor:
            if head is not None:
                right, bias = head.t(), None
            else:
                # Conv1D keeps its weight as [in, out].
                right = module.weight.t() if isinstance(module, nn.Linear) else module.weight
                bias = module.bias
            segments = self._segments[projection]
            # `airllm.models.check` takes no model whose projections see anything else.
            assert x.numel() == self._rows[projection] * x.shape[-1]
            result: Tensor = FleetLinear.apply(x, self._anchor, right, bias, segments)
            return result

        return forward

    def _parts(self, run: Factors, ends: Sequence[int]) -> list[Segment]:
        """A run's devices, in stretches of equally many tokens, by where devices' tokens end."""
        found, own = [], ends[run.first : run.first + run.count + 1]
        for first, count, length in _consecutive([b - a for a, b in pairwise(own)]):
            if length:
                key = (id(run), first, count)
                if key not in self._cut:
                    self._cut[key] = run.part(first, first + count)
                found.append((own[first], own[first + count], self._cut[key]))
        return found

    def _lay_out(self) -> None:
        """Runs of all projections as views of one flat buffer for each learning rate."""
        members, specs = self.members, self.base.specs
        plans = []  # (projection, first, count, rank, rate, scale)
        for p in range(len(specs)):
            keys = [
                (-(-len(m.adapter.down[p]) // self._tile) * self._tile, m.learning_rate, m.scale)
                for m in members
            ]
            plans += [(p, *plan) for plan in _consecutive(keys)]
        sizes: dict[float, int] = defaultdict(int)
        for p, _, count, (rank, rate, _) in plans:
            sizes[rate] += count * rank * specs[p].params_per_rank
        # Filled on the host, so that one copy brings all to a GPU.
        start = {rate: torch.zeros(size) for rate, size in sizes.items()}
        self._values = {
            rate: torch.zeros(size, device=self.base.device, requires_grad=True)
            for rate, size in sizes.items()
        }
        for values in self._values.values():
            values.grad = torch.zeros_like(values)
        # What is multiplied: the values themselves, or their copies in bf16.
        is_low = self.base.precision == "bf16"
        self._low = {
            rate: torch.zeros_like(v, dtype=torch.bfloat16) for rate, v in self._values.items()
        } if is_low else {}  # fmt: skip
        self._trained: list[list[Factors]] = [[] for _ in specs]
        self._cuts: list[list[tuple[int, int, float, list[slice]]]] = [[] for _ in specs]
        at: dict[float, int] = defaultdict(int)
        for p, first, count, (rank, rate, scale) in plans:
            if not rank:
                continue
            values = self._values[rate]
            assert values.grad is not None
            is_exact = self._dtype(p) != torch.bfloat16 or rate not in self._low
            multiplied = values.detach() if is_exact else self._low[rate]
            views, cuts = [], []
            for features in (specs[p].in_features, specs[p].out_features):
                cut = slice(at[rate], at[rate] + count * rank * features)
                at[rate] = cut.stop
                cuts.append(cut)
                views += [
                    t[cut].view(count, rank, features)
                    for t in (start[rate], multiplied, values.grad)
                ]
            down, low_down, down_grad, up, low_up, up_grad = views
            for i, m in enumerate(members[first : first + count]):
                own = m.adapter.down[p]
                down[i, : len(own)] = own
                up[i, : len(own)] = m.adapter.up[p].T
            grads = (down_grad if self._trains_down else None, up_grad)
            self._trained[p].append(Factors(first, scale, low_down, low_up, *grads))
            self._cuts[p].append((first, count, rate, cuts))
        for rate, values in self._values.items():
            values.detach().copy_(start[rate])
        self._round_off()
        self._loaded = [runs + self._frozen(p) for p, runs in enumerate(self._trained)]

    def _round_off(self) -> None:
        """Copy the values to where they are multiplied in bf16, if they are."""
        for rate, low in self._low.items():
            low.copy_(self._values[rate].detach())

    def _dtype(self, projection: int) -> torch.dtype:
        """That in which a projection multiplies; the head's weight is not the module's own."""
        weight = getattr(self.base.modules[projection], "weight", None)
        return torch.get_default_dtype() if weight is None else weight.dtype

    def _frozen(self, projection: int) -> list[Factors]:
        device, runs = self.base.device, []
        none = Adapter.zero(self.base.specs)
        frozen = [m.frozen or none for m in self.members]
        for first, count, rank in _consecutive([len(h.down[projection]) for h in frozen]):
            if rank:
                own = frozen[first : first + count]
                dtype = self._dtype(projection)
                down = torch.stack([h.down[projection] for h in own]).to(device, dtype)
                up = torch.stack([h.up[projection].T for h in own]).to(device, dtype)
                runs.append(Factors(first, 1.0, down, up))
        return runs


def _consecutive(keys: Sequence[Any]) -> list[tuple[int, int, Any]]:
    """(first, count, key) of each stretch of equal keys."""
    found, at = [], 0
    for key, group in groupby(keys):
        count = len(list(group))
        found.append((at, count, key))
        at += count
    return found
