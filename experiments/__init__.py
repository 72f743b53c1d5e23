"""From a configuration to runs, sweeps, figures and reports."""
