"""Scenarios, and the environment that a rank policy learns in."""
