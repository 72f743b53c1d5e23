"""A device profile: a watch and its throttling, an entry of `federated.hardware`.

    airllm run quick --set mode=federated \\
        --set 'federated.hardware=["phone", "my_device:watch(throttled=0.5)"]'
"""

from edge.hardware import Hardware


def watch(throttled=1.0):
    """A watch with a share of its speed left once it is warm; its power falls with it."""
    return Hardware(
        name="watch", flops_per_s=5e9 * throttled, power_w=0.8 * throttled, memory_bytes=5e8
    )
