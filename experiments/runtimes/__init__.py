"""Where a run's Flower apps live: this process, Ray's workers, or SuperNodes."""
