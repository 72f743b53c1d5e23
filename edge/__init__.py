"""A simulated edge device and its Flower ClientApp."""
