"""FedAvg and a ClientApp of one's own, over the air: what is late is left out of the average."""

import numpy as np
import pandas as pd
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from channel import Cell, ChannelConfig
from cloud.grids.channel_grid import ChannelGrid
from cloud.grids.local_grid import LocalGrid

app = ClientApp()


@app.train()
def train(message, context):
    """Pull the weights halfway towards this node's own centre; it takes two seconds."""
    centre = context.node_config["partition-id"]
    (weights,) = message.content["arrays"].to_numpy_ndarrays()
    arrays = ArrayRecord([(weights + (centre - weights) / 2).astype(np.float32)])
    metrics = MetricRecord({"num-examples": 1, "seconds": 2.0})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def run(snr_db, num_nodes=8, num_rounds=5):
    """(weights, one row for each message and reply)."""
    config = ChannelConfig(
        snr_db=snr_db, bandwidth_hz=2e6, deadline_s=2.0, round_period_s=2.0, sharing="orthogonal"
    )
    grid = ChannelGrid(
        LocalGrid(app, num_nodes, {}),  # or the grid that Flower gives a ServerApp
        Cell(config, num_nodes, seed=0),
        compute_s=lambda reply: reply.content["metrics"]["seconds"],
    )
    start = ArrayRecord([np.zeros(40_000, np.float32)])
    result = FedAvg(fraction_evaluate=0.0).start(grid, start, num_rounds=num_rounds)
    return result.arrays.to_numpy_ndarrays()[0], pd.DataFrame(grid.crossings)


if __name__ == "__main__":
    for snr_db in (-5.0, 5.0, 15.0):
        weights, crossings = run(snr_db)
        arrived = crossings.groupby("direction")["is_delivered"].mean()
        print(f"{snr_db:g} dB: weights {weights[0]:.2f}, in time {arrived.round(2).to_dict()}")
