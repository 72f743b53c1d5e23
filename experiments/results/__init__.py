"""Result folders: what a run writes, how it is read back, and its statistics."""

from experiments.results.folder import Results, load, read_ranks, read_results, read_rounds

__all__ = ["Results", "load", "read_ranks", "read_results", "read_rounds"]
