"""A policy: the whole band for the devices with the best links, `policy.name` of a configuration.

airllm run quick --set "policy.name=my_policy:BestLinks(share=0.25)"
"""

import numpy as np

from airllm.policies.knapsack import fit_budget


class BestLinks:
    """Serves a share of the devices, those that reported the highest SNR, by the greedy rule."""

    importance = "gain"  # a component is worth the decrease of the loss that it promises

    def __init__(self, num_devices, share=0.5):
        self.name = "best links"
        self.num_served = max(1, round(share * num_devices))

    def decide(self, observation):
        utility = observation.utility.copy()  # [devices, projections, rank]
        utility[np.argsort(-observation.snr_db)[self.num_served :]] = 0.0
        return fit_budget(
            utility, observation.unit_cost_s, observation.budget_s,
            is_joint=observation.is_shared_band,
        )  # fmt: skip

    def learn(self, feedback):
        return {}
