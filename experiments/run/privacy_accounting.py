"""What noised updates cost a device's privacy (airllm.lora.privacy): Flower's accountant."""

from __future__ import annotations

from flwr.serverapp import (
    GaussianPrivacyEvent,
    NeighboringRelation,
    PrivacyConfig,
    RdpAccountant,
    SamplingMethod,
)


def epsilon(noise: float, releases: int, delta: float) -> float:
    """The epsilon, at ``delta``, of so many updates of one device, composed.

    Renyi accounting of the Gaussian mechanism, by Flower's accountant (Google's dp-accounting). No
    amplification by sampling is counted: who took part is known to the cloud.
    """
    accountant = RdpAccountant(
        PrivacyConfig(
            target_delta=delta,
            population_size=1,
            neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
            sampling_method=SamplingMethod.NO_AMPLIFICATION,
        )
    )
    accountant.compose(GaussianPrivacyEvent(noise, 1, 1), releases)
    return float(accountant.get_epsilon(delta))
