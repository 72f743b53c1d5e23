"""LoRA adapters: algebra, bytes, many of them on one base, and what they do to the loss."""
