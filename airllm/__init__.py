"""What cloud and devices share: models, LoRA adapters, text, learners, rank policies."""
