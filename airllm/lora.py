"""Many devices' low-rank updates on one frozen base model.

An update of projection p is the product ``up_p @ down_p`` [out, in] of its factors, the scaling
folded in, so that no rank ever changes the scale of what a rank means.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from airllm.ranks import ProjectionSpec

# A component this much weaker than the strongest one of its projection is what rounding in fp32
# leaves of an update of lower rank (that of a head for two classes is 1), not a part of it.
_NOISE = 1e-6


@dataclass(frozen=True, slots=True)
class Adapter:
    """One low-rank update of every projection; fp32 on the CPU, rank 0 allowed.

    Component i of a projection is ``up[:, i] down[i, :]``; the first r components are what a rank
    of r keeps, so their order is their importance.
    """

    down: tuple[Tensor, ...]
    """a tensor [rank, in_features] for each projection"""
    up: tuple[Tensor, ...]
    """a tensor [out_features, rank] for each projection"""

    @staticmethod
    def zero(specs: Sequence[ProjectionSpec]) -> Adapter:
        """The update that changes nothing: rank 0 everywhere."""
        return Adapter(
            tuple(torch.zeros(0, spec.in_features) for spec in specs),
            tuple(torch.zeros(spec.out_features, 0) for spec in specs),
        )

    def state_dict(self) -> dict[str, Any]:
        """Its factors, for a checkpoint."""
        return {"down": list(self.down), "up": list(self.up)}

    @staticmethod
    def of_state(state: Mapping[str, Any]) -> Adapter:
        """What `state_dict` was of."""
        return Adapter(tuple(state["down"]), tuple(state["up"]))

    @property
    def ranks(self) -> NDArray[np.int64]:
        """[projections]"""
        return np.array([len(down) for down in self.down], dtype=np.int64)

    def truncate(self, ranks: NDArray[np.integer] | Sequence[int]) -> Adapter:
        """Keep the first ``ranks[p]`` components of projection p."""
        if len(ranks) != len(self.down):
            raise ValueError(f"ranks must have {len(self.down)} entries, got {len(ranks)}")
        return Adapter(
            tuple(down[: int(r)] for down, r in zip(self.down, ranks, strict=True)),
            tuple(up[:, : int(r)] for up, r in zip(self.up, ranks, strict=True)),
        )

    def reorder(self, order: Sequence[Tensor]) -> Adapter:
        """Put the components of projection p in the order ``order[p]`` [rank]."""
        return Adapter(
            tuple(down[index] for down, index in zip(self.down, order, strict=True)),
            tuple(up[:, index] for up, index in zip(self.up, order, strict=True)),
        )

    def scaled(self, factor: float) -> Adapter:
        """That many times the update."""
        return Adapter(self.down, tuple(factor * up for up in self.up))

    def plus(self, other: Adapter) -> Adapter:
        """The exact sum, by stacking factors: ranks add."""
        return Adapter(
            tuple(torch.cat(pair) for pair in zip(self.down, other.down, strict=True)),
            tuple(torch.cat(pair, dim=1) for pair in zip(self.up, other.up, strict=True)),
        )

    def minus(self, other: Adapter) -> Adapter:
        """The exact difference, by stacking factors: ranks add."""
        return self.plus(other.scaled(-1.0))

    def completed(self, other: Adapter) -> Adapter:
        """These components, and those of ``other`` that stand in places beyond them."""
        pairs = list(zip(self.down, self.up, other.down, other.up, strict=True))
        return Adapter(
            tuple(torch.cat([d, od[len(d) :]]) for d, _, od, _ in pairs),
            tuple(torch.cat([u, ou[:, u.shape[1] :]], dim=1) for _, u, _, ou in pairs),
        )

    def energy(self, num_components: int) -> NDArray[np.float64]:
        """[projections, num_components] squared Frobenius norm of each component, zero-padded.

        In the form that `svd_form` gives, these are the squared singular values.
        """
        out = np.zeros((len(self.down), num_components))
        for p, (down, up) in enumerate(zip(self.down, self.up, strict=True)):
            norms = down.double().square().sum(dim=1) * up.double().square().sum(dim=0)
            kept = norms[:num_components].numpy()
            out[p, : len(kept)] = kept
        return out

    def norm(self) -> float:
        """|B A|_F over all projections: sqrt(sum tr(B^T B A A^T)), without the products."""
        total = 0.0
        for down, up in zip(self.down, self.up, strict=True):
            d, u = down.double(), up.double()
            total += float(((u.T @ u) * (d @ d.T)).sum())
        return float(np.sqrt(max(total, 0.0)))

    def delta(self, projection: int) -> Tensor:
        """The dense update [out_features, in_features] of one projection."""
        return self.up[projection] @ self.down[projection]


def svd_form(adapter: Adapter, max_rank: int | None = None) -> Adapter:
    """The same update with orthogonal components, strongest first, cut to ``max_rank``.

    By Eckart and Young (1936) the first r components are then the best rank-r approximation.
    """
    groups: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for p, (down, up) in enumerate(zip(adapter.down, adapter.up, strict=True)):
        groups[up.shape[0], down.shape[1], down.shape[0]].append(p)
    new_down, new_up = list(adapter.down), list(adapter.up)
    for (_, _, rank), members in groups.items():
        if rank == 0:
            continue
        down = torch.stack([adapter.down[p] for p in members]).double()  # [n, r, in]
        up = torch.stack([adapter.up[p] for p in members]).double()  # [n, out, r]
        down, up = svd_of_product(down, up, max_rank)
        for p, d, u in zip(members, down.float(), up.float(), strict=True):
            new_down[p], new_up[p] = d, u
    return Adapter(tuple(new_down), tuple(new_up))


def svd_of_product(down: Tensor, up: Tensor, max_rank: int | None) -> tuple[Tensor, Tensor]:
    """Factors of the product ``up @ down`` by its singular value decomposition, cut, in float64.

    For U D with U [..., out, r] and D [..., r, in]: QR of U and of D^T, then the SVD X S Y^T of the
    small core R_U R_D^T, gives U D = (Q_U X) S (Q_D Y)^T without ever forming an [out, in] matrix.
    Both factors carry sqrt(S), so that they have the same scale on the air. Components that are
    noise are zero.
    """
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.mT)
    x, sigma, y = torch.linalg.svd(r_up @ r_down.mT, full_matrices=False)
    sigma = torch.where(sigma > _NOISE * sigma[..., :1], sigma, 0.0)[..., :max_rank]
    root = sigma.sqrt()  # [..., r]
    return (
        (y[..., :max_rank, :] @ q_down.mT) * root[..., :, None],
        (q_up @ x[..., :max_rank]) * root[..., None, :],
    )


def accumulate(held: Adapter, update: Adapter, max_rank: int) -> Adapter:
    """What a device holds after an update: the sum, recompressed once it outgrows ``max_rank``.

    Cloud and device apply this one deterministic rule to the same decoded bytes, so the cloud
    always knows what the device holds.
    """
    total = held.plus(update)
    if int(total.ranks.max(initial=0)) <= max_rank:
        return total
    return svd_form(total, max_rank)


class AdapterBank:
    """Adds stacked updates to the projections of one frozen base, by forward hooks.

    With D devices loaded, a batch is [devices * batch, tokens], device-major; every device's rows
    meet its own factors. The base's weights exist once, however many devices there are.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._factors: list[tuple[Tensor, Tensor, Tensor | float] | None] = [None] * len(modules)
        self.dropout = 0.0  # of the inputs of an update, while it trains
        self.generator: torch.Generator | None = None
        self.watch: Callable[[int, Tensor, Tensor], None] | None = None
        """is shown, in a backward pass, each projection's number, its input [..., in] and the
        gradient of its output [..., out], as often as the pass went through it; with it there is a
        backward pass, whatever is trained"""
        for p, module in enumerate(modules):
            module.register_forward_hook(self._hook(p))

    def load(
        self,
        down: Sequence[Tensor],
        up: Sequence[Tensor],
        scale: Sequence[Tensor] | float = 1.0,
    ) -> None:
        """Per projection: down [devices, rank, in], up [devices, out, rank], and a scale: one
        number, or a tensor [devices, rank] that weighs each component. They are multiplied in
        full precision, torch's default."""
        dtype = torch.get_default_dtype()
        for p, (d, u) in enumerate(zip(down, up, strict=True)):
            weight = scale if isinstance(scale, float) else scale[p]
            self._factors[p] = (d.to(dtype), u.to(dtype), weight) if d.shape[1] else None

    def load_adapters(self, adapters: Sequence[Adapter], device: torch.device) -> None:
        """Load one finished adapter for each device."""
        down, up = stack(adapters)
        parts = _moved([*down, *up], device)
        self.load(parts[: len(down)], parts[len(down) :])

    def clear(self) -> None:
        """Back to the bare base model."""
        self._factors = [None] * len(self._factors)
        self.dropout, self.watch = 0.0, None

    def _hook(self, projection: int) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            result = add_update(args[0], output)
            if self.watch is not None:
                if not result.requires_grad:
                    result = result.detach().requires_grad_()
                result.register_hook(partial(self.watch, projection, args[0].detach()))
            return result

        def add_update(x: Tensor, output: Tensor) -> Tensor:  # x [..., in], device-major
            factors = self._factors[projection]
            if factors is None:
                return output
            down, up, scale = factors
            if self.dropout:
                keep = 1.0 - self.dropout
                mask = torch.rand(x.shape, generator=self.generator, device=x.device) < keep
                x = x * mask / keep
            if len(down) == 1:
                low = F.linear(x, down[0])  # [batch, tokens, rank]
                low = low * (scale if isinstance(scale, float) else scale[0])
                return output + F.linear(low, up[0]).to(output.dtype)
            rows = x.reshape(len(down), -1, x.shape[-1])  # [devices, batch * tokens, in]
            low = rows @ down.transpose(1, 2)  # [devices, batch * tokens, rank]
            low = low * (scale if isinstance(scale, float) else scale[:, None, :])
            return output + (low @ up.transpose(1, 2)).reshape(output.shape).to(output.dtype)

        return hook


def _moved(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The same on a device; one copy takes all to a GPU, each of which the host waits for."""
    if device.type == "cpu":
        return list(tensors)
    moved = torch.cat([t.flatten() for t in tensors]).to(device)
    parts = moved.split([t.numel() for t in tensors])
    return [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)]


def stack(adapters: Sequence[Adapter]) -> tuple[list[Tensor], list[Tensor]]:
    """Factors of several devices as [devices, rank, in] and [devices, out, rank].

    Zero components pad unequal ranks; they change no product.
    """
    downs, ups = [], []
    for p in range(len(adapters[0].down)):
        rank = max(len(adapter.down[p]) for adapter in adapters)
        downs.append(
            torch.stack([F.pad(a.down[p], (0, 0, 0, rank - len(a.down[p]))) for a in adapters])
        )
        ups.append(torch.stack([F.pad(a.up[p], (0, rank - a.up[p].shape[1])) for a in adapters]))
    return downs, ups
