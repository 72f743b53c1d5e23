"""The frozen base model: where it comes from, its projections, what a pass through it costs."""
