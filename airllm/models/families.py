"""Which families of models work here, and how another one is refused."""

from __future__ import annotations

WORKING_FAMILIES = (
    "encoders such as BERT, RoBERTa, DistilBERT, ELECTRA, ALBERT and MPNet, and decoders such as "
    "GPT-2, OPT, GPT-NeoX, Llama, Mistral, Qwen and Gemma work"
)


def refusal(name: str, reason: str) -> ValueError:
    """The error for a model that does not work here."""
    return ValueError(f"model.name {name!r} does not work here: {reason}; {WORKING_FAMILIES}")
