"""Many devices' low-rank updates on one frozen base model.

An update of projection p is the product ``up_p @ down_p`` [out, in] of its factors, the scaling
folded in, so that no rank ever changes the scale of what a rank means.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from airllm.models.projections import ProjectionSpec

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


def accumulate(device_adapter: Adapter, update: Adapter, max_rank: int) -> Adapter:
    """What a device holds after an update: the sum, recompressed once it outgrows ``max_rank``.

    Cloud and device apply this one deterministic rule to the same decoded bytes, so the cloud
    always knows what the device holds.
    """
    total = device_adapter.plus(update)
    if int(total.ranks.max(initial=0)) <= max_rank:
        return total
    return svd_form(total, max_rank)
