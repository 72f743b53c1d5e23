"""The configuration of a run: its sections, how it is read, and parts of one's own."""

from experiments.config.loader import dump_config
from experiments.config.schema import ExperimentConfig, load_experiment

__all__ = ["ExperimentConfig", "dump_config", "load_experiment"]
