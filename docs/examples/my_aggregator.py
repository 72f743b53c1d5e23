"""An aggregator: no update shouts down the others, `federated.aggregator` of a configuration.

airllm run quick --set mode=federated --set "federated.aggregator=my_aggregator:Clipped"
"""

import numpy as np

from airllm.lora.adapter import Adapter
from cloud.aggregation.aggregate import exact


class Clipped:
    """Scales updates down to a quantile of their norms, then merges exactly."""

    def __init__(self, quantile=0.5):
        self.quantile = quantile

    def __call__(self, updates, weights, max_rank):
        norms = np.array([norm(update) for update in updates])
        limit = np.quantile(norms, self.quantile)
        scales = np.minimum(1.0, limit / np.maximum(norms, 1e-12))
        clipped = [
            Adapter(update.down, tuple(float(scale) * up for up in update.up))
            for update, scale in zip(updates, scales, strict=True)
        ]
        return exact(clipped, weights, max_rank)


def norm(update):
    """Frobenius norm of the products B A of all projections, which are never formed."""
    pairs = zip(update.up, update.down, strict=True)
    return sum(float(((b.T @ b) * (a @ a.T)).sum()) for b, a in pairs) ** 0.5
