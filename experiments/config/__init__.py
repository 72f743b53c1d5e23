"""The configuration of a run: its sections, how it is read, and parts of one's own."""

from experiments.config.loader import load_config
from experiments.config.schema import PRESETS, ExperimentConfig

__all__ = ["PRESETS", "ExperimentConfig", "load_config"]
