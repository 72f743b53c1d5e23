"""Flower Grids: one in this process, and one with the channel around any other."""
