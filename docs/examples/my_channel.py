"""A channel model: a train and its tunnel, `channel.model` of a configuration.

airllm channel show iot-shared-1mhz --set "channel.model=my_channel:Tunnel(depth_db=30)"
"""

import numpy as np


class Tunnel:
    """Devices in a row on a train: each enters the tunnel a second after the one before it."""

    is_constant = True  # within a round: a round takes a second

    def __init__(self, config, num_devices, depth_db=20.0, length_s=4.0, period_s=10.0):
        self.outside_db = 10.0 if config.snr_db is None else config.snr_db
        self.depth_db, self.length_s, self.period_s = depth_db, length_s, period_s
        self.behind_s = np.arange(num_devices) * 1.0

    def snr_db(self, time_s, direction):
        inside = (time_s - self.behind_s) % self.period_s < self.length_s  # [devices]
        return self.outside_db - self.depth_db * inside
